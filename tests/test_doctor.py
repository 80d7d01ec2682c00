"""The page of `tools.doctor`: each fault gets its line, its mend and the exit code."""

import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from jaxseg import model_dir
from jaxseg.checkpoint import Checkpoints
from jaxseg.config import defaults
from jaxseg.data.classes import make_classes
from jaxseg.tools import doctor
from jaxseg.tools.doctor import BAD, OK, WARN

ROOT = pathlib.Path(__file__).parents[1]


def levels(lines):
    return {line.subject: line.level for line in lines}


@pytest.fixture
def workdir(tmp_path):
    """A finished run: three steps and a model."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, score in ((1, 0.9), (2, None), (3, 0.5)):
            checkpoints.save(step, {"a": np.arange(5000) + step}, score)
    arrays = {"a": np.arange(9, dtype=np.float32)}
    model_dir.save(str(tmp_path), arrays, {}, defaults(), make_classes(["cat", "dog"]))
    return tmp_path


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def largest(folder):
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def test_supported_series_are_those_that_pip_installs():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    limits = {re.match(r"[\w-]+", line)[0]: line for line in lines}
    assert limits["jax"] == "jax>=0.10,<0.12" and doctor.SUPPORTED["jax"] == ("0.10", "0.11")
    assert "<0.13" in limits["flax"] and doctor.SUPPORTED["flax"] == ("0.12",)
    assert limits["orbax-checkpoint"].endswith(">=0.12")


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("jax", "0.10.2", OK),
        ("jax", "0.11.0", OK),
        ("jax", "0.12.0", BAD),
        ("jax", "0.1.1", BAD),
        ("flax", "0.11.9", BAD),
        ("orbax-checkpoint", None, BAD),
    ],
)
def test_versions(monkeypatch, name, version, level):
    real = importlib.metadata.version

    def answer(asked):
        if asked == name and version is None:
            raise importlib.metadata.PackageNotFoundError
        return version if asked == name else real(asked)

    monkeypatch.setattr(importlib.metadata, "version", answer)
    (line,) = [line for line in doctor.versions() if line.subject == name]
    assert line.level == level
    assert ("pip install" in line.text) == (level == BAD)


def test_old_and_new_pythons_are_warned_of(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.14.0")
    assert levels(doctor.versions())["python"] == WARN


def test_a_device_that_does_not_start(monkeypatch):
    def fail():
        raise RuntimeError("no cuda\nmore")

    monkeypatch.setattr(doctor.jax, "devices", fail)
    (line,) = doctor.devices()
    assert line.level == BAD and line.text.startswith("no cuda; set JAX_PLATFORMS=cpu")


@pytest.mark.parametrize(("free", "level"), [(8e9, OK), (2e9, WARN), (1e8, BAD)])
def test_disk(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: namedtuple("U", "free")(free))
    line = doctor.disk("disk", tmp_path / "not" / "made")
    assert line.level == level and str(tmp_path) in line.text


def test_compile_cache(tmp_path):
    (tmp_path / "x").write_bytes(b"1" * 2_500_000)
    line = doctor.compile_cache(tmp_path)
    assert line.level == OK and line.text.startswith("1 files, 2.5 MB")
    assert doctor.compile_cache(tmp_path / "none").text.startswith("0 files, 0.0 MB")
    line = doctor.compile_cache(tmp_path / "x" / "below")
    assert line.level == WARN and "cannot be written to (" in line.text
    assert "JAX_COMPILATION_CACHE_DIR" in line.text
    assert len(os.listdir(tmp_path)) == 1  # nothing was left there


def test_a_sound_run(workdir):
    lines = [line for line in doctor.run(workdir) if line.subject != "workdir disk"]
    assert set(levels(lines).values()) == {OK}
    texts = {line.subject: line.text for line in lines}
    assert texts["checkpoint 1"] == "whole, score 0.9000" and texts["checkpoint 2"] == "whole"
    assert texts["checkpoints"] == "newest 3, best 1"
    assert texts["model.safetensors"] == "1 arrays, 2 classes, sha256 intact"


def test_a_damaged_step_is_only_bad_if_no_other_is_whole(workdir):
    folder = workdir / "checkpoints"
    damage(largest(folder / "step_00000003"))
    before = sorted(folder.rglob("*"))
    (line,) = [line for line in doctor.run(workdir) if line.subject == "checkpoint 3"]
    assert line.level == WARN and "damaged (" in line.text
    assert line.text.endswith("--config.resume=True goes on from step 2")
    assert sorted(folder.rglob("*")) == before  # looked at, not touched
    for step in (1, 2):
        (folder / f"step_0000000{step}" / "manifest.json").write_text("{")
    found = [line for line in doctor.run(workdir) if line.subject.startswith("checkpoint ")]
    assert [line.level for line in found] == [BAD] * 3
    assert "train again" in found[0].text


def test_steps_put_aside_are_named(workdir):
    (workdir / "checkpoints" / "damaged_step_00000009").mkdir()
    lines = [line for line in doctor.run(workdir) if "damaged_step_00000009" in line.text]
    assert [line.level for line in lines] == [WARN]


def test_a_damaged_model(workdir):
    damage(workdir / "model.safetensors")
    (line,) = [line for line in doctor.run(workdir) if line.subject == "model.safetensors"]
    assert line.level == BAD and "sha256" in line.text


def test_new_and_impossible_workdirs(tmp_path):
    assert levels(doctor.run(tmp_path / "new"))["workdir"] == OK
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert levels(doctor.run(tmp_path / "file" / "run"))["workdir"] == BAD


def test_data(tmp_path):
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    lines = doctor.data(config)
    assert [line.level for line in lines] == [OK] * 3
    assert lines[0].text.startswith("4 images, 12 classes")
    config.data.update(name="folder", root=str(tmp_path / "none"))
    lines = doctor.data(config)
    assert [line.level for line in lines] == [BAD] * 3 and "no such folder" in lines[0].text


def test_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "classes.txt").write_text("0 a\n")
    for part in ("images", "labels"):
        (tmp_path / part / "train").mkdir(parents=True)
        (tmp_path / part / "train" / "x.png").write_bytes(b"<html>")
    config = defaults()
    config.data.update(root=str(tmp_path), val="", test="")
    (line,) = doctor.data(config)
    assert line.level == BAD and "x.png: cannot read" in line.text


def test_the_command(workdir):
    command = [sys.executable, "-m", "jaxseg.tools.doctor", f"--workdir={workdir}"]
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    result = subprocess.run(command, **run)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert all(re.match(r"(ok|warn|bad) +\S", line) for line in lines[:-1])
    assert lines[-1].startswith("0 bad, ")
    damage(workdir / "model.safetensors")
    result = subprocess.run(command, **run)
    assert result.returncode == 1 and result.stdout.splitlines()[-1].startswith("1 bad, ")
