"""What the documentation tells people to type: all of it parses, the way of the README is run."""

import ast
import json
import pathlib
import re
import runpy
import shlex
import sys

import jax
import numpy as np
import pytest
from absl import flags
from foreign_states import timm_vit
from PIL import Image

from jaxseg import cli, tasks
from jaxseg.data.shapes import shapes

# How ml_collections reads --config.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\):DeprecationWarning")
ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "train.py", "eval.py")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("configs/*.py")),
]
STARTS = ("python ", "bash ", "pip ", "source ", ".venv/")
# Not ours to parse, and why.
ELSEWHERE = {
    "source .venv/bin/activate": "a shell's own",
    "pip install torch==2.13.0": "PyTorch, for the benchmark below",
    ".venv/bin/python -m pip install jax[cuda13]<0.12": "libraries of a GPU machine",
    "bash scripts/quickstart.sh": "installs into .venv, then trains for minutes",
    "bash scripts/test.sh": "installs into .venv, then runs these tests",
    "python -m benchmarks.": "minutes of measuring, and PyTorch",
}
ANY, ANY_CONFIG = ("...", "C", "configs/NAME.py"), "configs/dtop_segvit_vitti_camvid.py"


# --- what is documented


def text_of(page: pathlib.Path) -> str:
    text = page.read_text()
    if page.suffix == ".py":
        text = ast.get_docstring(ast.parse(text))
    return re.sub(r" *\\\n *", " ", text)


def commands_of(page: pathlib.Path) -> list[str]:
    """Commands in fenced blocks, indented lines and inline code, continued lines joined.

    Of a page, or of the docstring of a program or configuration.
    """
    text = text_of(page)
    fences = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fences for line in block.splitlines()]
    lines += [line for line in rest.splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    found = [line.strip() for line in lines + spans if line.strip().startswith(STARTS)]
    # Fields alone, as in `--config.train.steps=5000`.
    fields = [span for span in spans if re.match(r"--config\.[\w.]+=", span)]
    return found + [f"python train.py --config=... --workdir=W {span}" for span in fields]


def words_of(command: str) -> list[str]:
    """Words of a command; where "...", C or NAME.py stand for a configuration there is one."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    return [
        f"--config={ANY_CONFIG}" if word.removeprefix("--config=") in ANY else word
        for word in words
    ]


def program_of(words: list[str]) -> tuple[pathlib.Path, list[str]]:
    """The file that python or bash runs, and its arguments."""
    if words[1] == "-m":
        return ROOT / (words[2].replace(".", "/") + ".py"), words[3:]
    return ROOT / words[1], words[2:]


def elsewhere(words: list[str]) -> str | None:
    text = " ".join(words)
    return next((known for known in ELSEWHERE if text.startswith(known)), None)


def test_there_are_commands():
    count = {page.name: len(commands_of(page)) for page in PAGES}
    assert count["README.md"] > 15 and count["results.md"] > 10
    assert all(count[page.name] > 1 for page in PAGES if page.parent.name == "configs")
    met = {elsewhere(words_of(command)) for page in PAGES for command in commands_of(page)}
    assert met - {None} == set(ELSEWHERE)


def test_fenced_bash_holds_nothing_else():
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                assert not line or line.startswith(STARTS), f"{page.name}: {line}"


# --- every one of them parses


@pytest.fixture
def own_flags():
    """No flags but those of the program under test; whatever was defined comes back."""
    before = {flags.FLAGS[name].name: flags.FLAGS[name] for name in flags.FLAGS}

    def clear():
        for name in list(flags.FLAGS):
            # grain reads its own; a long name takes its short one along
            if name in flags.FLAGS and not name.startswith("grain_"):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()

    clear()
    yield clear
    clear()
    for name, flag in before.items():
        if name not in flags.FLAGS:
            flags.FLAGS[name] = flag


def run(program: pathlib.Path, arguments: list[str], monkeypatch) -> int:
    """The exit code of a program, run in this process."""
    monkeypatch.setattr(sys, "argv", [program.name, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(program), run_name="__main__")
    return end.value.code or 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_parses(page, own_flags, monkeypatch, capsys):
    """The program and the configuration exist, all flags and fields too, values have their type,
    and the configuration makes a network."""
    parse, wrong = cli.run, []

    def built(rest):
        config = flags.FLAGS.config if "config" in flags.FLAGS else None
        if config is not None:
            tasks.of(config).spec(config, 11)

    monkeypatch.setattr(cli, "run", lambda main, **settings: parse(built, **settings))
    monkeypatch.chdir(ROOT)
    for command in commands_of(page):
        words = words_of(command)
        if words[0] in ("python", "bash"):
            program, arguments = program_of(words)
            assert program.is_file(), f"{command}: no {program.relative_to(ROOT)}"
        if elsewhere(words):
            continue
        # Only what starts by cli.run is held back from doing what it is for.
        assert "cli.run(main" in program.read_text(), f"{command}: say in ELSEWHERE why not"
        own_flags()
        if run(program, arguments, monkeypatch):
            wrong.append(f"{command}\n    {capsys.readouterr().err.strip()}")
    assert not wrong, "\n".join(wrong)


# --- the way of the README, from one's own images to an exported model

SMOKE = "--config.data.name=folder --config.data.root=MY_DATA --config.data.test=val"
LOW = "--config.method.k=1 --config.method.exit1.threshold=0.1"
ONE = "--config.method.k=1 --config.method.exit2.threshold=1.0 --keep=0.5"
# How commands of the README start, in its order, and what makes each of them take seconds.
WAY = {
    "python -m jaxseg.tools.check_data": "",
    "python train.py --config=configs/own_data.py": SMOKE,
    "python eval.py --workdir": "",
    "python -m jaxseg.tools.predict": "",
    "python eval.py --config=configs/dtop": f"{SMOKE} {LOW}",
    "python -m jaxseg.tools.bench": f"{ONE} --size=64,96 --batch=2 --rounds=1 --seconds=0",
    "python -m jaxseg.tools.sweep": f"{SMOKE} --exits=1 --thresholds=0.1,1.0",
    "python -m jaxseg.tools.export": "--size=64,96",
}


def own_data(folder: pathlib.Path) -> None:
    """A data set as the README describes it, start weights, and pictures to segment."""
    scenes = shapes(6, (64, 96), seed=0)
    named = zip(scenes.classes.names, scenes.classes.colours, strict=True)
    lines = [f"{k}\t{name}\t{','.join(map(str, c))}\n" for k, (name, c) in enumerate(named)]
    for part in ("images/train", "images/val", "labels/train", "labels/val"):
        (folder / "MY_DATA" / part).mkdir(parents=True)
    (folder / "MY_DATA" / "classes.txt").write_text("".join(lines))
    for k in range(6):
        part = "train" if k < 4 else "val"
        image, label = (Image.fromarray(scenes[k][name]) for name in ("image", "label"))
        image.save(folder / "MY_DATA" / "images" / part / f"{k}.jpg")
        label.save(folder / "MY_DATA" / "labels" / part / f"{k}.png")
    np.savez(folder / "VIT_TINY.npz", **timm_vit(32, 3, 16))
    (folder / "folder").mkdir()
    image.save(folder / "photo.jpg")
    image.save(folder / "folder" / "other.png")
    for name in ("WORKDIR", "DENSE_WORKDIR"):
        (folder / name).symlink_to(folder / "runs" / "mine")


def test_the_way_of_the_readme(tmp_path, own_flags, monkeypatch, capsys):
    own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    for start, more in WAY.items():
        command = next(c for c in commands_of(ROOT / "README.md") if c.startswith(start))
        program, arguments = program_of(words_of(command))
        smoke = ":smoke" if more else ""
        arguments = [
            re.sub(r"^--config=(configs/\w+\.py)$", rf"--config={ROOT}/\1{smoke}", word)
            for word in arguments
        ]
        own_flags()
        code = run(program, arguments + shlex.split(more), monkeypatch)
        said = capsys.readouterr()
        assert code == 0, f"{command}: {said.out[-2000:]}\n{said.err[-2000:]}"
    mine, out = tmp_path / "runs" / "mine", tmp_path / "OUT"
    results = json.loads((mine / "results.json").read_text())
    assert results["images"] == 2 and results["split"] == "test"
    assert (mine / "report.html").is_file() and (tmp_path / "check_data" / "train.png").is_file()
    assert {p.name for p in (out / "labels").iterdir()} == {"photo.png", "other.png"}
    assert len((out / "summary.csv").read_text().splitlines()) == 3
    direct = json.loads((tmp_path / "runs" / "direct" / "results.json").read_text())
    assert direct["exit_layers"] == [1, 2] and direct["kept_after_exit"][0] < 1
    assert len((mine / "sweep.csv").read_text().splitlines()) == 3
    assert (mine / "export" / "dense.stablehlo").stat().st_size > 10_000
