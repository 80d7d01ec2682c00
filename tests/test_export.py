"""Exported programs, loaded again, answer like the model: here, and where only jax is known."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_execute import CASES
from tiny_models import images, numbers

from jaxseg import labels
from jaxseg.models.network import network
from jaxseg.tools.export import exported

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "export.md"
SIZE, SPECS = (10, 15), {"packed": CASES["handed on"], "dense": CASES["handed on"].dense()}
ARRAYS = numbers(SPECS["dense"])
PIXELS = np.clip(128 + 90 * images(2), 0, 255).astype(np.uint8)[:, : SIZE[0], : SIZE[1]]


@pytest.fixture(scope="module")
def artefacts():
    """By name: what is in the file, and the labels and token counts it answers in this process."""
    config = importlib.import_module("configs.dtop_segvit_vitti_camvid").get_config()
    found = {}
    for name, spec in SPECS.items():
        program = exported(spec, ARRAYS, config, SIZE, 2)
        content = bytes(program.serialize())
        found[name] = content, *jax.export.deserialize(bytearray(content)).call(PIXELS)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_exported_models_answer_like_the_model(artefacts, name):
    _, found, alive = artefacts[name]
    program = network(SPECS[name]).program()
    answer = program(ARRAYS, (PIXELS.astype(np.float32) - 127.5) / 127.5)
    ways = [labels.axis(n, ((4 * n, s),)) for n, s in zip((3, 4), SIZE, strict=True)]
    expected = labels.label_map(answer.scores, *ways)[:, : SIZE[0], : SIZE[1]]
    np.testing.assert_array_equal(alive, answer.alive)
    assert found.shape == (2, *SIZE) and found.dtype == np.uint8
    assert len(np.unique(found)) > 2, "the case shows nothing"
    assert (np.asarray(found) != np.asarray(expected)).mean() < 0.01  # near ties


def test_another_process_needs_jax_alone(artefacts, tmp_path):
    """What docs/export.md tells people to write, run as it stands, without this package."""
    snippet = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    np.save(tmp_path / "images.npy", PIXELS)
    lines = ["import sys", 'sys.modules["jaxseg"] = None  # importing it would fail']
    for name, (content, *_) in artefacts.items():
        (tmp_path / f"{name}.stablehlo").write_bytes(content)
        lines += [snippet.replace("packed", name), f'np.savez("{name}", labels, alive)']
    command = [sys.executable, "-c", "\n".join(lines)]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    for name, (_, *expected) in artefacts.items():
        with np.load(tmp_path / f"{name}.npz") as answers:
            for ours, theirs in zip(expected, answers.values(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
