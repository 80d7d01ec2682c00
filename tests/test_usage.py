"""Who goes through which blocks: counts against slow loops, the network's choices, page, files."""

import base64
import dataclasses
import functools
import importlib
import io
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from test_bypass import CASES
from test_predict_page import Page
from tiny_models import GRID, PATCH, images, numbers

from jaxseg import build, model_dir, pages, usage, usage_page, usage_pictures
from jaxseg.bypass import Cut
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError
from jaxseg.evaluation import Sample
from jaxseg.execute import Masked, Packing
from jaxseg.inference import EvalSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes
from jaxseg.usage_view import UsageView, choices, measure

EVIL = "<script>alert('1')</script>&\"{{title}}{% raw %}\udcff"
CLASSES = make_classes([EVIL, *"abcd"])
HOW = EvalSpec(mode="whole", mean=(0.0,) * 3, std=(255.0,) * 3)
BEFORE = (Cut(1), Cut(2), Cut(3))


@st.composite
def pictures(draw_):
    """Choices of 4 blocks and a label map that does not fill its last patches."""
    rows, columns, patch = (draw_(st.integers(1, 3)) for _ in range(3))
    through = draw_(arrays_of.arrays(bool, (4, rows, columns)))
    size = rows * patch - (patch > 1), columns * patch
    label = draw_(arrays_of.arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 9, 255])))
    return through, label, patch


KINDS = 0, 1, 2, "0 or 2", "other", "border", "inside"


def slow(through, label, patch):
    """Used, next, later per layer; patches of each class, ground and place, and used per layer."""
    blocks, rows, columns = through.shape
    counts = {name: np.zeros(blocks, int) for name in ("used", "next", "later")}
    groups = {name: [0, np.zeros(blocks, int)] for name in KINDS}
    for row in range(rows):
        for column in range(columns):
            path = through[:, row, column]
            for block in range(blocks):
                counts["used"][block] += path[block]
                if not path[block]:
                    counts["next"][block] += block + 1 < blocks and path[block + 1]
                    counts["later"][block] += any(path[block + 1 :])
            part = label[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            pixels = [int((part == k).sum()) for k in range(3)]
            if any(pixels):
                ground = "other" if pixels.index(max(pixels)) == 1 else "0 or 2"
                place = "border" if sum(n > 0 for n in pixels) > 1 else "inside"
                for name in (pixels.index(max(pixels)), place, ground):
                    groups[name][0] += 1
                    groups[name][1] += path
    return counts, groups


@settings(max_examples=40, deadline=None)
@given(st.lists(pictures(), min_size=1, max_size=3))
def test_sums_and_shares_are_those_of_a_slow_loop(found):
    total = None
    for through, label, patch in found:
        one = usage.Usage.of_image(through, label, patch, classes=3)
        total = one if total is None else total + one
    told = usage.figures(total, BEFORE, "xyz", foreground=[2, 0])
    loops = [slow(*picture) for picture in found]
    patches = sum(through[0].size for through, *_ in found)
    counts = {n: sum(c[n] for c, _ in loops) for n in ("used", "next", "later")}
    assert told["images"] == len(found) and told["patches"] == patches
    assert told["usage"] == pytest.approx(counts["used"].sum() / patches / 4)
    assert told["blocks_per_patch"] == pytest.approx(4 * told["usage"])
    for i, row in enumerate(told["layers"]):
        skipped = patches - counts["used"][i]
        assert row["layer"] == i + 1
        assert row["usage"] == pytest.approx(counts["used"][i] / patches)
        assert row["use_next"] == pytest.approx(counts["next"][i] / patches)
        assert row["use_later"] == pytest.approx(counts["later"][i] / patches)
        assert row["usage"] + row["use_later"] + row["dropped"] == pytest.approx(1)
        ratio = row["reactivation_ratio"]
        assert ratio == (pytest.approx(counts["later"][i] / skipped) if skipped else None)
        assert 0 <= row["use_next"] <= row["use_later"] <= 1 and (ratio is None or 0 <= ratio <= 1)
    later = counts["later"].sum()
    assert told["next_of_reactivated"] == (
        pytest.approx(counts["next"].sum() / later) if later else None
    )
    listed = told["classes"] + told["grounds"] + told["places"]
    for name, row in zip(KINDS, listed, strict=True):
        size, used = (sum(groups[name][part] for _, groups in loops) for part in (0, 1))
        assert row["patches"] == size
        assert row["usage_per_layer"] == (pytest.approx(used / size) if size else [None] * 4)
        assert row["usage"] == (pytest.approx(used.mean() / size) if size else None)
    json.dumps(told, allow_nan=False)


def test_nobody_comes_back_in_the_last_layer_and_everybody_who_must():
    through = np.array([1, 0, 0, 1, 0], bool)[:, None, None]
    following, later = usage.reactivated(through)
    assert following.tolist() == [0, 0, 1, 0, 0] and later.tolist() == [0, 1, 1, 0, 0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), unique=True, min_size=1), st.booleans(), st.integers(0, 99))
def test_a_choice_holds_until_the_next(blocks, inside, seed):
    cuts = [Cut(block, inside) for block in sorted(blocks)]
    chosen = np.random.default_rng(seed).random((len(cuts), 2, 3)) < 0.5
    through = usage.went(chosen, cuts, 5)
    for block in range(5):
        made = [i for i, cut in enumerate(cuts) if cut.block <= block]
        np.testing.assert_array_equal(through[block], chosen[made[-1]] if made else True)
    for mask, (first, last) in zip(chosen, usage.spans(cuts, 5), strict=True):
        assert first <= last
        np.testing.assert_array_equal(through[first - 1 : last], [mask] * (last - first + 1))


def test_an_exit_and_a_cut_at_one_place_are_told_once():
    """Whoever leaves there is among those who are not chosen."""
    cuts = [Cut(1), Cut(3, leaves=True), Cut(3), Cut(4, leaves=True)]
    chosen = np.ones((4, 2, 3), bool)
    chosen[1:, 0], chosen[2:, 1, 0], chosen[3] = False, False, False
    through = usage.went(chosen, cuts, 5)
    told = usage_pictures.masks_of(through, cuts)
    assert [text for text, _ in told] == ["layers 2 to 3: 100 %", "layer 4: 33 %", "layer 5: 0 %"]
    assert usage_page._choices(cuts, 5) == ["all", "before", "as in 2", "before", "some have left"]


def test_the_mean_map_is_on_the_grid_that_most_images_have():
    def of(size, blocks):
        through = np.arange(4)[:, None, None] < np.asarray(blocks)
        through = np.broadcast_to(through, (4, *size))
        return usage.Usage.of_image(through, np.zeros(size, np.uint8), 1, 1)

    ramp = np.array([[0, 1, 2], [1, 2, 4]])
    same = of((2, 3), ramp) + of((2, 3), 2)
    np.testing.assert_allclose(same.heat(), (ramp + 2) / 2)
    mixed = of((4, 6), 1) + same  # whatever comes first
    np.testing.assert_allclose(mixed.heat(), (ramp + 2 + 1) / 3, rtol=1e-6)


class Drawn:
    """Five images of one size with labels."""

    classes = CLASSES

    def __len__(self):
        return 5

    def __getitem__(self, i):
        image = np.clip(128 + 60 * images(5)[i], 0, 255).astype(np.uint8)
        label = (np.indices((20, 28)).sum(0) // 9 % 4).astype(np.uint8)
        label[:, :9] = 255
        return {"image": image, "label": label, "name": f"val/{i}{EVIL[:8]}"}


def test_choices_are_those_of_the_patches():
    """Neither class tokens nor what has been fused; the same in both layouts."""
    spec = CASES["evit"]
    net, arrays, batch = network(spec), numbers(spec), images(2)

    @functools.partial(jax.jit, static_argnums=1)
    def chosen(batch, executor):
        model, decided = net.bind(*net.split(arrays)), []
        decide = model.decide
        model.decide = lambda *given: decided.append(decide(*given)) or decided[-1]
        return choices(model, batch, executor), [choice.chosen for _, choice in decided]

    found, decided = chosen(batch, Masked())
    assert found.shape == (2, len(spec.cuts), *GRID)
    for i, slots in enumerate(decided):
        patches = slots[:, spec.prefix : spec.prefix + 35].reshape(2, *GRID)
        np.testing.assert_array_equal(found[:, i], patches)
        assert 0 < patches.sum() < patches.size
    np.testing.assert_array_equal(chosen(batch, Packing())[0], found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of five images, two of them as samples."""
    folder = tmp_path_factory.mktemp("svit")
    write(folder / "usage", HOW, samples=2)
    return folder / "usage"


def view_of(how):
    return UsageView(network(CASES["svit"]), how)


def write(folder, how, samples):
    drawn = [Drawn()[i] for i in range(samples)]
    shown = [Sample(s["name"], s["image"], s["label"], s["label"], None) for s in drawn]
    view, arrays = view_of(how), numbers(CASES["svit"])
    usage_page.write(folder, f"Of {EVIL}", view, arrays, Drawn(), shown, foreground=(0, 2))


def test_figures_are_of_all_images(written):
    told = json.loads((written / "usage.json").read_text())
    assert told["images"] == 5 and told["patches"] == 5 * 35
    assert told["cuts"] == [{"layer": i, "inside": False, "leaves": False} for i in (2, 3, 4)]
    assert [row["usage"] for row in told["layers"]][0] == 1.0
    assert np.array(told["heat_map"]).shape == GRID
    assert np.mean(told["heat_map"]) == pytest.approx(told["blocks_per_patch"], abs=1e-3)
    names = {path.name for path in written.iterdir()}
    assert {name for name in names if name.endswith(".png")} == {
        f"val_{i}{EVIL[:8].replace('/', '_')}.png" for i in range(2)
    }


def test_by_windows_three_samples_are_all(tmp_path):
    slide = dataclasses.replace(HOW, mode="slide", crop=(16, 16), stride=(16, 16))
    write(tmp_path / "usage", slide, samples=4)
    assert json.loads((tmp_path / "usage" / "usage.json").read_text())["images"] == 3
    assert "went by windows" in (tmp_path / "usage" / "index.html").read_text()
    write(tmp_path / "nothing", slide, samples=0)
    assert not (tmp_path / "nothing").exists()


def test_a_view_fits_images_and_labels_alike():
    view = view_of(dataclasses.replace(HOW, resize=(14, 14)))
    sample = Drawn()[0]
    assert view(numbers(CASES["svit"]), sample["image"]).shape == (4, 3, 4)
    assert view.seen(sample["label"]).shape == (10, 14)
    assert measure(view, numbers(CASES["svit"]), [sample]).overall.patches.tolist() == [12]


def test_names_from_outside_are_text(written):
    page = Page((written / "index.html").read_bytes())
    assert not page.open and "script" not in {tag for tag, _ in page.tags}
    shown = EVIL.encode("utf-8", "backslashreplace").decode()
    text = " ".join(page.text)
    # Titles, the class in its table and as foreground; samples.
    assert text.count(shown) == 4 and text.count(EVIL[:8]) == 4 + 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_loaded_from_elsewhere(written):
    page = Page((written / "index.html").read_bytes())
    urls = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert urls and all(re.match("data:image/(jpeg|png);base64,|#i", url) for url in urls)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    digest = pages._digest(page.raw["style"])
    assert "default-src 'none'" in policy and f"style-src '{digest}'" in policy
    assert not any("style" in attributes for _, attributes in page.tags)


def test_the_page_shows_the_numbers_and_the_choices(written):
    told = json.loads((written / "usage.json").read_text())
    page = Page((written / "index.html").read_bytes())
    for row in told["layers"]:
        for share in list(row.values())[1:]:
            assert ("n/a" if share is None else f"{100 * share:.1f}") in page.text
    assert [row["name"] for row in told["grounds"]] == ["foreground", "background"]
    assert all(f"{4 * row['usage']:.2f}" in page.text for row in told["grounds"] + told["places"])
    seen = [row for row in told["classes"] if row["patches"]]
    assert len(seen) < 5 and all(f"{4 * row['usage']:.2f}" in page.text for row in seen)
    through = view_of(HOW)(numbers(CASES["svit"]), Drawn()[0]["image"])
    heat, *masks = page.images()[2:6]  # behind the mean map and the photo
    assert len(np.unique(heat.reshape(-1, 4), axis=0)) == len(np.unique(through.sum(axis=0)))
    for mask, shown in zip(through[1:], masks, strict=True):
        np.testing.assert_array_equal(shown[..., 3] > 0, ~mask)


def test_pictures_are_changed_where_patches_skip_alone():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (18, 27, 3), np.uint8)
    mask = rng.random((5, 7)) < 0.5
    shown = usage_pictures.over(image, usage_pictures.veil(mask), PATCH)
    skips = ~np.kron(mask, np.ones((PATCH, PATCH), bool))[:18, :27]
    np.testing.assert_array_equal((shown != image).any(axis=2), skips)


def test_a_sheet_has_a_cell_per_choice():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 28, 3), np.uint8)
    through = usage.went(rng.random((3, *GRID)) < 0.5, BEFORE, 4)
    sheet = usage_pictures.sheet(image, through, BEFORE, PATCH)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    few = usage_pictures.sheet(image, through, BEFORE[:2], PATCH)
    more = usage_pictures.sheet(image, np.repeat(through, 2, axis=0), [Cut(i) for i in range(6)], 4)
    assert few.shape[0] == sheet.shape[0] < more.shape[0] and few.shape[1] == more.shape[1]
    colours = {tuple(rgb) for rgb in sheet.reshape(-1, 3)}
    heat = usage_pictures.heat(through, BEFORE)[..., :3].reshape(-1, 3)
    assert colours >= {tuple(rgb) for rgb in heat}


def test_foreground_names_classes_of_the_data_set():
    config = importlib.import_module("configs.svit_vitti_camvid").get_config()
    listed = make_classes(["sky", "pole", "sign_symbol", "car", "pedestrian", "bicyclist"])
    assert build.foreground(config, listed) == (1, 2, 3, 4, 5)
    config.eval.foreground = ("sky", "bicylist")
    with pytest.raises(UserError, match="names 'bicylist'.* nearest is 'bicyclist'"):
        build.foreground(config, listed)


def test_evaluation_writes_the_folder(tmp_path, capsys):
    config = importlib.import_module("configs.svit_vitti_camvid").get_config("smoke")
    config.update_from_flattened_dict({"eval.mode": "whole", "method.selection": "static"})
    config.eval.foreground = ("star", "pole")
    source = build.make_source(config, "test")
    params, stats = draw(*shapes(build.segmenter_spec(config, len(source.classes))), 0)
    model_dir.save(str(tmp_path), params, stats, config, source.classes)
    importlib.import_module("eval").evaluate(config, str(tmp_path))
    told = json.loads((tmp_path / "usage" / "usage.json").read_text())
    assert told["images"] == len(source) and len(told["classes"]) == len(source.classes)
    named = {row["name"]: row["patches"] for row in told["classes"]}
    assert told["grounds"][0]["patches"] == named["star"] + named["pole"]
    assert "usage" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "usage").iterdir()}
    assert {"index.html", "usage.json"} < names and len(names) == 4
    page = Page((tmp_path / "usage" / "index.html").read_bytes())
    photo = next(a["href"] for a in page.all("image") if "jpeg" in a["href"])
    assert Image.open(io.BytesIO(base64.b64decode(photo.split(",")[1]))).size == (96, 64)
