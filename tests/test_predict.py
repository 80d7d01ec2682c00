"""One call and one command from a trained folder to labels, overlays and a table."""

import csv
import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import quick_compiles
from PIL import Image

import jaxseg
import train
from jaxseg.data.images import read_label
from jaxseg.errors import UserError
from jaxseg.tools import predict

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _quick_compiles():
    with quick_compiles():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = importlib.import_module("configs.dtop_segvit_vitti_camvid").get_config("smoke")
    config.method.exit1.threshold, config.method.k = 0.2, 1
    folder = tmp_path_factory.mktemp("model")
    with quick_compiles():
        train.train(config, str(folder), "test")
        yield jaxseg.load(folder)


def a_picture(path, size=(50, 40), mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_load_and_predict(model):
    image = np.zeros((40, 70, 3), np.uint8)
    found = model.predict(image)
    assert found.labels.shape == (40, 70) and found.labels.max() < len(model.classes)
    assert found.gmacs > 0 and found.seconds > 0 and len(found.left) == len(found.alive) == 1
    with pytest.raises(ValueError, match="uint8"):
        model.predict(image.astype(np.float32))
    with pytest.raises(UserError, match="no such checkpoint"):
        jaxseg.load("nowhere")


def test_every_picture_is_answered_and_a_bad_one_is_named(model, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    a_picture(folder / "a.png")
    a_picture(folder / "b.jpg", mode="L")
    a_picture(folder / "c.webp", size=(30, 64))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    again = a_picture(tmp_path / "a.png", mode="RGBA")
    paths = predict.inputs_of([str(folder), str(again), str(tmp_path / "*.png")])
    assert [p.name for p in paths] == ["a.png", "b.jpg", "broken.png", "c.webp", "a.png"]
    out = tmp_path / "out"
    table, failed = predict.predict_all(model, paths, out)
    assert failed == 1 and "broken.png" in capsys.readouterr().err
    rows = list(csv.DictReader(table.splitlines()))
    assert [bool(r["error"]) for r in rows] == [False, False, True, False, False]
    assert rows[0]["width"] == "40" and rows[0]["height"] == "50" and float(rows[0]["gmacs"]) > 0
    names = {"a", "a_2", "b", "c"}
    assert {p.stem for p in (out / "labels").iterdir()} == names
    assert {p.stem for p in (out / "overlay").iterdir()} == names
    assert {p.stem for p in (out / "exits").iterdir()} == names
    labels = read_label(out / "labels" / "c.png")
    expected = model.predict(np.asarray(Image.open(folder / "c.webp").convert("RGB"))).labels
    np.testing.assert_array_equal(labels, expected)
    shown = np.asarray(Image.open(out / "labels" / "c.png").convert("RGB"))
    np.testing.assert_array_equal(shown[0, 0], model.classes.colours[labels[0, 0]])


def test_arguments_that_name_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="no picture there"):
        predict.inputs_of([str(tmp_path)])


def test_importing_jaxseg_does_not_import_jax():
    code = "import jaxseg, sys; assert 'jax' not in sys.modules and jaxseg.__version__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
