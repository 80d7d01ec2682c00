"""A user's mistake gets one line on standard error and exit code 2."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
QUICK = "--config=configs/quickstart.py"


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/quickstart.py:smok"], "unknown argument 'smok'"),
        (["--config=configs/nothing.py"], "no such file"),
        ([QUICK, "--config.optim.lrr=1"], "unknown field 'lrr'; did you mean 'lr'?"),
        ([QUICK, "--config.optm.lr=1"], "unknown field 'optm'; did you mean 'optim'?"),
        ([QUICK, "--config.train.steps=1.5"], "--config.train.steps=1.5"),
        ([QUICK, "extra"], "unexpected argument 'extra'"),
    ],
)
def test_flags(arguments, message):
    result = run("train.py", "--workdir=never-made", *arguments)
    assert_one_line(result, message)
    assert not (ROOT / "never-made").exists()


def test_missing_data_folder():
    config = "--config=configs/own_data.py"
    result = run("train.py", config, "--config.data.root=no/such", "--workdir=never-made")
    assert_one_line(result, "no/such: no such folder")
    assert not (ROOT / "never-made").exists()


def test_evaluation_of_an_empty_folder(tmp_path):
    assert_one_line(run("eval.py", f"--workdir={tmp_path}"), "no config.json in it")


def test_macs_tool_ends_with_json():
    result = run("-m", "jaxseg.tools.flops", "--config=configs/segvit_vitb_ade20k.py")
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert '"gmacs_backbone_and_final_head": 109.8' in last and '"gmacs_all_heads": 114.9' in last


def assert_one_line(result: subprocess.CompletedProcess, message: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in result.stderr
