"""One call and one command from a trained folder to labels, overlays and a table."""

import csv
import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys
import types

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import build, memory, model_dir
from jaxseg.data.classes import make_classes
from jaxseg.data.images import read_image, read_label
from jaxseg.errors import UserError
from jaxseg.execute import Masked
from jaxseg.exits import StageView
from jaxseg.inference import EvalSpec
from jaxseg.models.initial import draw
from jaxseg.models.macs import dense_macs
from jaxseg.models.network import network, shapes
from jaxseg.tools import predict
from jaxseg.windows import window_starts

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two exits, whole images, patches of 8 pixels; its weights say nothing, but not always the
    same."""
    config = importlib.import_module("configs.dtop_segvit_vitti_camvid").get_config("smoke")
    config.method.exit1.threshold = config.method.exit2.threshold = 0.4
    config.method.k, config.model.patch = 1, 8
    classes, rng = make_classes([f"class {k}" for k in range(5)]), np.random.default_rng(0)
    params, stats = draw(*shapes(build.segmenter_spec(config, len(classes))), seed=0)
    moved = {n: v + 0.3 * rng.standard_normal(v.shape, np.float32) for n, v in params.items()}
    folder = tmp_path_factory.mktemp("model")
    model_dir.save(str(folder), moved, stats, config, classes)
    yield jaxseg.load(folder)


@pytest.fixture(scope="module")
def dense(model):
    """The same weights, nobody leaves: one small program per size."""
    heads = tuple(dataclasses.replace(head, decide=None) for head in model.spec.heads)
    spec = dataclasses.replace(model.spec, heads=heads)
    predictor = dataclasses.replace(model.predictor, program=network(spec).program())
    return dataclasses.replace(model, spec=spec, predictor=predictor)


def a_picture(path, size=(50, 40), mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_load_and_predict(model):
    image = np.zeros((50, 40, 3), np.uint8)
    found = model.predict(image)
    assert found.labels.shape == (50, 40) and found.labels.max() < len(model.classes)
    assert found.gmacs > 0 and found.seconds > 0 and len(found.left) == len(found.alive) == 1
    with pytest.raises(ValueError, match="uint8"):
        model.predict(image.astype(np.float32))
    with pytest.raises(UserError, match="no such checkpoint"):
        jaxseg.load("nowhere")


def test_warmup_compiles_all_that_a_size_can_need(model):
    fresh = model.configured(model.config)
    count = fresh.warmup((32, 32))
    assert count == fresh.predictor.program.compiled > 3
    fresh.predict(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert count == fresh.predictor.program.compiled


def test_the_same_weights_by_another_configuration(model):
    image = np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    config = model.config
    config.method.name = "dense"
    dense = model.configured(config).predict(image)
    assert dense.alive.shape[1] == 1 and dense.gmacs > 0 and (dense.left[0] == -1).all()
    config.method.name, config.method.exit1.threshold = "dtop", 0.0
    pruned = model.configured(config).predict(image)
    assert (pruned.left[0] == 0).any() and pruned.alive[0, 1] < pruned.alive[0, 0]
    # What was changed was a copy.
    assert model.config.method.exit1.threshold == 0.4 and model.predict(image).alive.shape[1] > 1
    config.model.head_width = 32
    with pytest.raises(UserError, match="does not fit the model"):
        model.configured(config)


def run(model, arguments, out, limit=4e9):
    """(how many failed, the rows of the summary, the page)."""
    paths = predict.inputs_of([str(a) for a in arguments], out)
    failed = predict.predict_all(model, paths, out, limit, "Title")
    rows = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    return failed, rows, (out / "report.html").read_text()


def slides(model, **changes):
    """The same model, looking through windows."""
    how = EvalSpec("slide", crop=(32, 48), stride=(20, 33), batch_size=2)
    how = dataclasses.replace(how, **changes)
    return dataclasses.replace(model, predictor=dataclasses.replace(model.predictor, spec=how))


def test_every_picture_is_answered_and_a_bad_one_is_named(dense, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    a_picture(folder / "a.png")
    a_picture(folder / "b.jpg", mode="L")
    a_picture(folder / "c.webp")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._a.png").write_text("what some systems add")
    again = a_picture(tmp_path / "A.png", mode="RGBA")
    out = tmp_path / "out"
    failed, rows, page = run(dense, [folder, again, tmp_path / "*.png"], out)
    assert failed == 1 and "broken.png" in capsys.readouterr().err
    files = [pathlib.Path(r["file"]).name for r in rows]
    assert files == ["a.png", "b.jpg", "broken.png", "c.webp", "A.png"]
    assert [bool(r["error"]) for r in rows] == [False, False, True, False, False]
    assert rows[0]["width"] == "40" and rows[0]["height"] == "50" and float(rows[0]["gmacs"]) > 0
    names = {"a", "A_2", "b", "c"}
    for kind in ("labels", "overlay"):
        assert {p.stem for p in (out / kind).iterdir()} == names
    assert [r["labels"] for r in rows if not r["error"]] == [
        f"labels/{name}.png" for name in ("a", "b", "c", "A_2")
    ]
    labels = read_label(out / "labels" / "c.png")
    expected = dense.predict(np.asarray(Image.open(folder / "c.webp").convert("RGB"))).labels
    np.testing.assert_array_equal(labels, expected)
    shown = np.asarray(Image.open(out / "labels" / "c.png").convert("RGB"))
    np.testing.assert_array_equal(shown[0, 0], dense.classes.colours[labels[0, 0]])
    assert page.count("<article") == 4 and "broken.png" in page
    written = {"labels", "overlay", "legend.png", "report.html", "summary.csv"}
    assert {p.name for p in out.iterdir()} == written


def test_stages_on_the_page_are_those_of_the_network(model, tmp_path, monkeypatch):
    path = a_picture(tmp_path / "a.png")
    view = StageView(network(model.spec), model.predictor.spec)
    picture = predict.look(model, view, path, 4e9)
    stages = view(model.arrays, picture.image)
    assert len(picture.stages) == len(model.spec.exits) == 2
    for shown, expected in zip((*picture.stages, picture.labels), stages.labels, strict=True):
        np.testing.assert_array_equal(shown, expected)
    patch = model.spec.vit.patch
    assert (stages.left >= 0).any()
    pixels = stages.left.repeat(patch, axis=0).repeat(patch, axis=1)[:50, :40]
    np.testing.assert_array_equal(picture.left, pixels)
    dense = dense_macs(model.spec, (50, 40)).gmacs_backbone_and_final_head
    assert picture.dense_gmacs == pytest.approx(dense)
    assert picture.tokens[0] == stages.left.size > picture.tokens[1]
    monkeypatch.setattr(predict, "StageView", lambda *_: view)  # compiled already
    failed, (row,), page = run(model, [path], tmp_path / "out")
    assert not failed and page.count("<input") == 1 and page.count("data-text") == 3
    assert [p.name for p in (tmp_path / "out" / "exits").iterdir()] == ["a.png"]
    assert row["tokens_per_stage"] == " ".join(map(str, picture.tokens))


def test_windows_show_the_exit_of_the_last_window_over_a_pixel(model, tmp_path):
    masked = dataclasses.replace(model.predictor, program=network(model.spec).program(Masked()))
    sliding = slides(dataclasses.replace(model, predictor=masked))  # one program, not a chain
    path = a_picture(tmp_path / "a.png", size=(45, 70))
    picture = predict.look(sliding, None, path, 4e9)
    found = sliding.predict(picture.image)
    starts = window_starts((45, 70), (32, 48), (20, 33))
    assert len(starts) == len(found.left) == 4
    patch, never = model.spec.vit.patch, len(model.spec.exits)
    for y, x in [(0, 0), (44, 69), (25, 40), (10, 60)]:
        exits = [
            left[(y - top) // patch, (x - start) // patch]
            for (top, start), left in zip(starts, found.left, strict=True)
            if top <= y < top + 32 and start <= x < start + 48
        ]
        last = max(never if e < 0 else e for e in exits)
        assert picture.left[y, x] == (-1 if last == never else last)
    _, _, page = run(sliding, [path], tmp_path / "out")
    assert "windows overlap" in page and "<input" not in page and "where tokens left" in page
    # By hand: one exit per window, the first stays to the end. Windows begin at rows 0 and 13,
    # columns 0 and 22.
    exits = [np.full(left.shape, e) for left, e in zip(found.left, (-1, 1, 0, 1), strict=True)]
    by_hand = predict.left_of_pixels(sliding, found._replace(left=tuple(exits)), (45, 70))
    assert [by_hand[p] for p in [(0, 0), (0, 69), (44, 0), (44, 69)]] == [-1, 1, 0, 1]
    assert [by_hand[p] for p in [(20, 30), (20, 60), (40, 30)]] == [-1, 1, 1]
    for several in (slides(model, flip=True), slides(model, scales=(1.0, 0.5))):
        assert predict.left_of_pixels(several, found, (45, 70)) is None


def test_a_dense_model_has_no_exits(dense, tmp_path):
    path = a_picture(tmp_path / "a.png")
    failed, (row,), page = run(dense, [path], tmp_path / "out")
    assert not failed and row["tokens_per_stage"] == "35" and row["gmacs"] == row["dense_gmacs"]
    assert "<script" not in page and not (tmp_path / "out" / "exits").exists()


def test_estimates_of_memory_by_hand(dense):
    """Score maps are float32 per class; 10 bytes are for each pixel of image and view."""
    classes, spec, network_of = 4 * len(dense.classes), dense.spec, dense.predictor
    slide, crop = slides(dense).predictor, 2 * 32 * 48
    # Maps lie in buckets of 64 pixels.
    expected = classes * (128 * 128 + crop) + 10 * (128 * 128 + 100 * 100)
    assert memory.needed(spec, slide, (100, 100)) == expected
    both = slides(dense, flip=True).predictor
    expected = classes * (3 * 128 * 128 + crop) + 10 * (128 * 128 + 100 * 100)
    assert memory.needed(spec, both, (100, 100)) == expected
    small = slides(dense, resize=(64, 64)).predictor
    expected = classes * (64 * 64 + crop) + 10 * (64 * 64 + 1000 * 1000)
    assert memory.needed(spec, small, (1000, 1000)) == expected
    tokens, width = 100 * 100 / spec.vit.patch**2, spec.vit.width
    expected = 4 * (tokens**2 + 24 * width * tokens) + 10 * 2 * 100 * 100
    assert memory.needed(spec, network_of, (100, 100)) == pytest.approx(expected)
    assert memory.fitting(spec, slide, (100, 100), expected * 1e3) == (100, 100)
    with pytest.raises(UserError, match=r"--memory_gb=\d"):
        memory.fitting(spec, slide, (100, 100), 1e3)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_a_huge_picture_is_predicted_smaller_and_that_is_said(dense, tmp_path, capsys, mode):
    dense = slides(dense) if mode == "slide" else dense
    path = a_picture(tmp_path / "a.png", size=(160, 240))
    limit = memory.needed(dense.spec, dense.predictor, (100, 150))
    given = []
    watched = Watched(dense, given)
    failed, (row,), page = run(watched, [path], tmp_path / "out", limit)
    (height, width, _), *_ = given
    assert memory.needed(dense.spec, dense.predictor, (height, width)) <= limit
    assert 90 < height <= 128 and width / height == pytest.approx(1.5, abs=0.02)
    assert not failed and (row["width"], row["height"]) == ("240", "160")
    assert (row["predicted_width"], row["predicted_height"]) == (str(width), str(height))
    said = f"predicted at {width} x {height}, labels enlarged"
    assert said in capsys.readouterr().err and said in page
    labels = read_label(tmp_path / "out" / "labels" / "a.png")
    assert labels.shape == (160, 240)
    smaller = cv2.resize(read_image(path), (width, height), interpolation=cv2.INTER_AREA)
    expected = dense.predict(smaller).labels
    centres = [
        (((k + 0.5) * n / side).astype(int))
        for k, n, side in ((np.arange(160), height, 160), (np.arange(240), width, 240))
    ]
    np.testing.assert_array_equal(labels, expected[np.ix_(*centres)])


class Watched:
    """A model that notes the shapes of the images it is given."""

    def __init__(self, model, given):
        self._model, self._given = model, given

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict(self, image):
        self._given.append(image.shape)
        return self._model.predict(image)


class Failing(Watched):
    def predict(self, image):
        self._given.append(image.shape)
        if len(self._given) == 2:
            raise self.error
        return self._model.predict(image)


def test_a_picture_that_fills_the_memory_fails_alone(dense, tmp_path):
    paths = [a_picture(tmp_path / f"{name}.png") for name in "abc"]
    failing = Failing(dense, [])
    failing.error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    )
    failed, rows, _ = run(failing, paths, tmp_path / "out")
    assert failed == 1 and "--memory_gb" in rows[1]["error"] and not rows[2]["error"]


def test_what_is_done_is_told_when_it_is_stopped(dense, tmp_path):
    paths = [a_picture(tmp_path / f"{name}.png") for name in "abc"]
    failing, out = Failing(dense, []), tmp_path / "out"
    failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        predict.predict_all(failing, paths, out, 4e9, "Title")
    assert len((out / "summary.csv").read_text().splitlines()) == 2
    assert "2 of 3 pictures were not looked at" in (out / "report.html").read_text()
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_pictures_of_odd_shapes(dense, tmp_path, size):
    for each in (dense, slides(dense)):
        failed, _, _ = run(each, [a_picture(tmp_path / "a.png", size)], tmp_path / "out")
        assert not failed and read_label(tmp_path / "out" / "labels" / "a.png").shape == size


def test_names_that_people_and_systems_give(dense, tmp_path):
    """Markup, long names, equal names in other case or with bytes that are no text."""
    hostile = "<script>alert(1)<"
    names = [
        f"{hostile}script>.jpg",
        "x" * 250 + ".png",
        "é.png",
        "É.png",
        os.fsdecode(b"\xff.png"),
    ]
    paths = [a_picture(tmp_path / name) for name in names]
    out = tmp_path / "out"
    failed, rows, page = run(dense, paths, out)
    written = {p.name for p in (out / "labels").iterdir()}
    assert not failed and len(written) == len(rows) == 5
    assert {"picture.png", "x" * 200 + ".png"} < written
    assert hostile not in page and "&lt;script&gt;alert" in page


def test_the_command_says_by_its_exit_code_that_some_failed(dense, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda *_: dense)
    monkeypatch.setattr(predict.startup, "prepare", lambda: None)
    given = {"weights": "w", "out": str(tmp_path / "out"), "config": None, "memory_gb": 4.0}
    monkeypatch.setattr(predict, "FLAGS", types.SimpleNamespace(**given))
    good = a_picture(tmp_path / "a.png")
    assert predict.main([str(good)]) == 0
    assert "report.html" in capsys.readouterr().out
    (tmp_path / "b\x1b[2J.png").write_bytes(b"")
    assert predict.main([str(tmp_path / "*.png")]) == 1
    said = capsys.readouterr().err
    assert "1 of 2 pictures failed" in said and "\x1b" not in said and "b\\x1b[2J.png" in said
    (tmp_path / "file").write_text("")
    given["out"] = str(tmp_path / "file" / "out")
    monkeypatch.setattr(predict, "FLAGS", types.SimpleNamespace(**given))
    with pytest.raises(UserError, match="cannot be written"):
        predict.main([str(good)])
    with pytest.raises(UserError, match="no picture named"):
        predict.main([])


def test_arguments_that_name_nothing_are_refused(tmp_path):
    for argument in (tmp_path, tmp_path / "*.png", tmp_path / "x.png"):
        with pytest.raises(UserError, match="no picture there"):
            predict.inputs_of([str(argument)], tmp_path / "out")


def test_a_folder_that_is_also_written_to(tmp_path):
    """Only what an earlier call has written is left out, unless it is named itself."""
    own = a_picture(tmp_path / "legend.png")
    mine = a_picture(tmp_path / "a[1].png")
    (tmp_path / "labels").mkdir()
    label = a_picture(tmp_path / "labels" / "a.png")
    assert predict.inputs_of([str(tmp_path)], tmp_path) == [mine]
    assert predict.inputs_of([str(tmp_path)], tmp_path / "out") == [mine, own]
    assert predict.inputs_of([str(mine), str(label), str(mine)], tmp_path) == [mine, label]


def test_importing_jaxseg_does_not_import_jax():
    code = "import jaxseg, sys; assert 'jax' not in sys.modules and jaxseg.__version__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
