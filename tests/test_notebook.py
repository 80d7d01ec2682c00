"""The demo notebook: well-formed, small, and every cell of it runs, in a process of its own."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxseg import build, model_dir, zoo
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "jaxseg_demo.ipynb"
# What Jupyter does with the code cells; the last line says what they left behind.
RUNNER = """
import json, sys
from matplotlib import pyplot
cells = json.load(open(sys.argv[1]))["cells"]
names = {}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
left = {name: names[name] for name in ("gmacs", "THRESHOLDS", "STEPS")}
left |= {"layers": names["layers"], "workdir": str(names["workdir"])}
left |= {"sheet": names["sheet"].shape, "figures": len(pyplot.get_fignums())}
left |= {"answer": names["answer"].labels.shape, "moved": names["outcome"].alive[0].tolist()}
print(json.dumps(left))
"""


@pytest.fixture(scope="module")
def book() -> dict:
    return json.loads(PATH.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """A tiny SETR with auxiliary heads that are sure of what they say, so that tokens leave."""
    config = importlib.import_module("configs.dtop_setr_vitb_ade20k").get_config("smoke")
    config.method.name = "dense"  # as a checkpoint comes
    classes = build.make_source(config, "test").classes
    params, stats = draw(*shapes(build.segmenter_spec(config, len(classes))), config.seed)
    sure = {n: 1e3 * v if n.endswith("classify.kernel") else v for n, v in params.items()}
    assert sum(n.endswith("classify.kernel") for n in params) == len(config.model.taps)
    folder = tmp_path_factory.mktemp("model")
    model_dir.save(str(folder), sure, stats, config, classes)
    return folder


def test_it_is_a_notebook_without_outputs(book):
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    for cell in book["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["metadata"], dict)
        assert re.fullmatch(r"[\w-]{1,64}", cell["id"])
        lines = cell["source"]
        assert all(line.endswith("\n") for line in lines[:-1]) and not lines[-1].endswith("\n")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert PATH.stat().st_size < 30_000


def test_the_model_it_names_can_be_loaded_and_has_exits(book):
    (source,) = ("".join(cell["source"]) for cell in book["cells"] if cell["id"] == "model")
    assert zoo.find(re.search(r'^MODEL = "(.*?)"', source, re.MULTILINE)[1]).kind == "setr"


def test_every_cell_runs(model, tmp_path):
    settings = {
        "JAXSEG_DEMO_MODEL": str(model),
        "JAXSEG_DEMO_STEPS": "2",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "MPLBACKEND": "Agg",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-c", RUNNER, str(PATH)]
    done = subprocess.run(
        command, cwd=PATH.parent, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Nobody leaves at 1; the lower the threshold, the more do.
    gmacs = found["gmacs"]
    assert found["THRESHOLDS"] == sorted(found["THRESHOLDS"], reverse=True)
    assert gmacs == sorted(gmacs, reverse=True) and gmacs[-1] < 0.9 * gmacs[0]
    assert len(found["layers"]) == 2 and found["moved"][2] < found["moved"][0]
    assert found["figures"] == 7 and found["sheet"][0] > 300
    assert found["STEPS"] == 2 and found["answer"] == [256, 256]
    run = pathlib.Path(found["workdir"])
    assert run.parent == tmp_path and (run / "model.safetensors").stat().st_size > 1000
