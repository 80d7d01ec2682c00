"""Accuracy by the exit at which pixels left, counted by hand and beside the whole evaluation."""

import numpy as np
import pytest

from jaxseg import exit_costs, metrics
from jaxseg.data.classes import IGNORE, make_classes
from jaxseg.inference import Prediction

CLASSES = make_classes(["a", "b"])


def answer(labels, left=((0, 1), (-1, -1)), inputs=((8, 8),)):
    return Prediction(np.array(labels, np.uint8), inputs, None, (np.array(left),), ())


def test_pixels_follow_the_patch_that_the_network_saw():
    """Patches of 4 on a grid of 2 x 3: seen at 8 x 10 (the last column is padded), then larger."""
    left = np.arange(6).reshape(2, 3)
    found = exit_costs.left_of_pixels(left, (8, 10), 4, (8, 10))
    np.testing.assert_array_equal(
        found[[0, 3, 4]][:, [0, 3, 4, 9]], [[0, 0, 1, 2]] * 2 + [[3, 3, 4, 5]]
    )
    larger = exit_costs.left_of_pixels(left, (8, 10), 4, (16, 20))
    np.testing.assert_array_equal(larger, found.repeat(2, axis=0).repeat(2, axis=1))


def test_parts_by_hand():
    """8 x 8 pixels, four patches of 4: exit 0 is half right early, exit 1 right, two stayed."""
    label = np.zeros((8, 8), np.uint8)
    label[4:] = 1
    label[:2, :4] = IGNORE
    early, dense = label.copy(), label.copy()
    early[2, :4], early[:2, :4], dense[:2, :4] = 1, 0, 0
    dense[4:, 4:] = 0  # a patch that stayed is right with exits alone
    costs = exit_costs.ExitCosts(2, 4, 2)
    costs({"label": label}, {"model": answer(early), "dense": answer(dense)})
    first, second, stayed = costs.summary([6, 8], CLASSES)
    assert (first["layer"], second["layer"], stayed["layer"]) == (6, 8, None)
    assert [p["pixels"] for p in (first, second, stayed)] == [8 / 56, 16 / 56, 32 / 56]
    assert (first["accuracy"], first["dense_accuracy"]) == (0.5, 1.0)
    assert (second["accuracy"], second["dense_accuracy"]) == (1.0, 1.0)
    assert (stayed["accuracy"], stayed["dense_accuracy"]) == (1.0, 0.5)
    # Dense: of class a 24 are right and 16 more said so, of b 16 right of 32.
    base = (24 / 40 + 16 / 32) / 2
    assert first["miou_change"] == pytest.approx((20 / 40 + 16 / 36) / 2 - base)
    assert second["miou_change"] == 0.0
    assert stayed["miou_change"] == pytest.approx(1.0 - base)
    some = exit_costs.lines([first, second, stayed], 3)
    assert some["stayed"].startswith("57.14 % of the pixels of 1 of 3 images, 100.00 % right")
    said = exit_costs.lines([first, second, stayed], 1)
    assert list(said) == ["left after layer 6", "left after layer 8", "stayed"]
    assert said["left after layer 6"].startswith(
        "14.29 % of the pixels, 50.00 % right (densely 100"
    )
    assert said["stayed"].endswith("mIoU +45.00")


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    costs, whole = exit_costs.ExitCosts(2, 4, 2), {"model": 0, "dense": 0}
    for _ in range(5):
        label = rng.choice([0, 1, 7, IGNORE], (8, 8)).astype(np.uint8)
        left = rng.integers(-1, 2, (2, 2))
        answers = {name: answer(rng.integers(0, 2, (8, 8)), left) for name in whole}
        costs({"label": label}, answers)
        for name, found in answers.items():
            whole[name] = whole[name] + metrics.confusion(found.labels, label, 2)
    for way, name in enumerate(("model", "dense")):
        np.testing.assert_array_equal(costs.matrices[:, way].sum(axis=0), whole[name])


def test_windows_overlap_and_are_left_out():
    costs = exit_costs.ExitCosts(2, 4, 2)
    two = answer(np.zeros((8, 8)), inputs=((8, 8), (8, 8)))
    costs({"label": np.zeros((8, 8), np.uint8)}, {"model": two, "dense": two})
    assert not costs.matrices.any()
    assert exit_costs.lines(costs.summary([6, 8], CLASSES), 1) == {}
