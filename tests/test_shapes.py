"""Drawn scenes: repeatable, varied, and not solvable by colour alone."""

import pickle

import numpy as np
import pytest

from jaxseg.data.shapes import NAMES, shapes
from jaxseg.errors import UserError

FIRST_OBJECT = NAMES.index("disc")


@pytest.fixture(scope="module")
def scenes():
    source = shapes(40, (96, 128), seed=0)
    return [source[i] for i in range(len(source))]


def test_form(scenes):
    source = shapes(40, (96, 128), seed=0)
    assert len(source) == 40 and source.classes.names == NAMES and len(NAMES) >= 8
    for scene in scenes:
        assert scene["image"].shape == (96, 128, 3) and scene["image"].dtype == np.uint8
        assert scene["label"].shape == (96, 128) and scene["label"].dtype == np.uint8
        assert scene["label"].max() < len(NAMES)
    assert len({scene["name"] for scene in scenes}) == 40


def test_scene_depends_on_seed_and_index_alone(scenes):
    other = pickle.loads(pickle.dumps(shapes(1000, (96, 128), seed=0)))
    for i in (17, 3):
        for key in ("image", "label"):
            np.testing.assert_array_equal(other[i][key], scenes[i][key])
    pictures = {scene["image"].tobytes() for scene in scenes}
    assert len(pictures) == 40
    assert shapes(1, (96, 128), seed=1)[0]["image"].tobytes() not in pictures


def test_every_class_appears_and_grounds_cover_most(scenes):
    counts = np.bincount(np.concatenate([s["label"].ravel() for s in scenes]), minlength=12)
    share = counts / counts.sum()
    assert (counts > 0).all()
    assert 0.6 < share[:FIRST_OBJECT].sum() < 0.95
    assert share[FIRST_OBJECT:].min() > 0.002


def test_mean_colour_does_not_tell_the_classes(scenes):
    """Nearest mean colour, fitted on these very pixels, must fail on most object pixels."""
    image = np.concatenate([s["image"][::3, ::3].reshape(-1, 3) for s in scenes]).astype(float)
    label = np.concatenate([s["label"][::3, ::3].ravel() for s in scenes])
    means = np.stack([image[label == k].mean(axis=0) for k in range(len(NAMES))])
    guess = ((image[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (guess == label)[label >= FIRST_OBJECT].mean() < 0.4


def test_labels_follow_the_picture(scenes):
    """Brightness jumps across label borders far more than elsewhere."""
    ratios = []
    for scene in scenes:
        step = np.abs(np.diff(scene["image"].astype(float), axis=0)).mean(axis=2)
        border = np.diff(scene["label"].astype(int), axis=0) != 0
        ratios.append(step[border].mean() / step[~border].mean())
    assert np.median(ratios) > 2


def test_nonsense_is_refused():
    for arguments, word in (((0, (64, 64), 0), "count"), ((1, (64, 8), 0), "size")):
        with pytest.raises(UserError, match=word):
            shapes(*arguments)
    with pytest.raises(UserError, match="seed"):
        shapes(1, (64, 64), -1)
    with pytest.raises(IndexError):
        shapes(1, (64, 64), 0)[1]
