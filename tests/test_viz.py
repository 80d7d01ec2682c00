"""Pictures have the right colours in the right places and survive odd input."""

import numpy as np
import pytest
from PIL import Image

from jaxseg import viz
from jaxseg.data.classes import make_classes

CLASSES = make_classes(["road", "sky"], [(200, 0, 0), (0, 0, 200)])
LABEL = np.uint8([[0, 1], [255, 7]])


def test_colours():
    expected = [[[200, 0, 0], [0, 0, 200]], [[128] * 3, [128] * 3]]
    assert viz.colour(LABEL, CLASSES).tolist() == expected
    assert viz.colour(LABEL, CLASSES).dtype == np.uint8


def test_overlay_mixes_and_leaves_ignored_pixels():
    image = np.full((40, 30, 3), 100, np.uint8)
    label = np.zeros((40, 30), np.uint8)
    label[:, 15:] = 255
    out = viz.overlay(image, label, CLASSES, alpha=0.25)
    assert (out[:, :15] == [125, 75, 75]).all()
    kept = (out[:, 15:] == 100).all(axis=2)
    assert 0.7 < kept.mean() < 0.9  # the rest is the hatch
    assert viz.overlay(image, label, CLASSES, alpha=0.0)[0, 0].tolist() == [100] * 3
    assert viz.overlay(image, label, CLASSES, alpha=1.0)[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 11, 150, 255])
def test_legend_shows_every_colour_within_its_width(count):
    classes = make_classes([f"class {k}" for k in range(count)])
    page = viz.legend(classes, width=500)
    assert page.shape[1:] == (500, 3) and page.dtype == np.uint8
    shown = {tuple(rgb) for rgb in page.reshape(-1, 3).tolist()}
    assert shown >= set(classes.colours)


def test_legend_of_a_name_wider_than_the_page():
    page = viz.legend(make_classes(["x" * 300, "sky"]), width=200)
    assert page.shape == (48, 200, 3)


def test_sheet_places_pictures_of_any_size():
    red = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    blue = np.full((50, 10, 3), (0, 0, 255), np.uint8)
    page = viz.sheet([[blue], [red, blue]], ["first", "second"])
    assert page.dtype == np.uint8
    assert (page == (255, 0, 0)).all(axis=2).sum() == 20 * 30
    assert (page == (0, 0, 255)).all(axis=2).sum() == 2 * 50 * 10
    rows = np.flatnonzero((page == (0, 0, 255)).all(axis=2).any(axis=1))
    assert np.flatnonzero(np.diff(rows) > 1).tolist() == [49]  # the second row is below the first


def test_sheet_refuses_a_missing_title():
    with pytest.raises(ValueError):
        viz.sheet([[np.zeros((2, 2, 3), np.uint8)]], [])


@pytest.mark.parametrize("picture", [LABEL, viz.colour(LABEL, CLASSES)])
def test_png_is_lossless(picture, tmp_path):
    viz.save_png(tmp_path / "x.png", picture)
    with Image.open(tmp_path / "x.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), picture)


@pytest.mark.parametrize("count", [2, 11, 60])
def test_confusion_picture(count, tmp_path):
    """Dark on the diagonal, hatched where a class is absent; names are no formulas."""
    names = [f"$\\frac{{{k}$" for k in range(count - 1)] + ["under_score"]
    matrix = np.zeros((count + 1, count), np.int64)
    np.fill_diagonal(matrix, 10)
    blank, full = tmp_path / "blank.png", tmp_path / "full.png"
    viz.confusion_picture(matrix, make_classes(names), full)
    matrix[0] = 0
    matrix[count] = 5  # labels that are no class are not drawn
    viz.confusion_picture(matrix, make_classes(names), blank)
    with Image.open(full) as a, Image.open(blank) as b:
        dark = [np.asarray(x.convert("RGB"))[..., 0] < 20 for x in (a, b)]
        assert min(a.size) > 400
    assert dark[0].sum() > dark[1].sum() > 0
