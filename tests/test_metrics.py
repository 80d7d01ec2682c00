"""Metrics equal mmsegmentation's, on its own numbers and on cases counted by hand."""

import pathlib

import numpy as np
import pytest

from jaxseg.metrics import confusion, nan_mean, summarise, table

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "metrics.npz")
CLASSES = 8
NAMES = [f"class {k}" for k in range(CLASSES)]
FIELDS = {
    "IoU": "iou",
    "Acc": "recall",
    "Dice": "dice",
    "Fscore": "fscore",
    "Precision": "precision",
    "Recall": "recall",
}


def reduce_zero(label):
    """ADE labels: 0 is "other"."""
    return np.where(label == 0, 255, label - (label != 255)).astype(np.uint8)


def matrices(labels):
    return [confusion(GOLDEN[f"in/pred{i}"], label, CLASSES) for i, label in enumerate(labels)]


def areas(matrix):
    """mmseg's intersection, union, prediction and label areas."""
    hit, labelled, predicted = matrix.diagonal(), matrix[:-1].sum(1), matrix.sum(0)
    return np.stack([hit, predicted + labelled - hit, predicted, labelled])


def labels_of(case):
    if case == "plain":
        return [GOLDEN[f"in/label{i}"] for i in range(3)]
    return [reduce_zero(GOLDEN[f"in/rawlabel{i}"]) for i in range(3)]


@pytest.mark.parametrize("case", ["plain", "reduce_zero"])
@pytest.mark.parametrize("version, tolerance", [("v030", 1e-9), ("v122", 1e-6)])
def test_scores_equal_mmseg(case, version, tolerance):
    per_image = matrices(labels_of(case))
    prefix = f"out/{version}/{case}/"
    expected = GOLDEN[prefix + "areas_per_image_intersect_union_pred_label"]
    np.testing.assert_array_equal(np.stack([areas(m) for m in per_image]), expected)

    scores = summarise(sum(per_image), NAMES)
    for theirs, ours in FIELDS.items():
        np.testing.assert_allclose(
            getattr(scores, ours), GOLDEN[prefix + theirs], rtol=0, atol=tolerance, err_msg=theirs
        )
    assert abs(scores.pixel_accuracy - GOLDEN[prefix + "aAcc"]) <= tolerance


@pytest.mark.parametrize("case", ["plain", "reduce_zero"])
def test_means_equal_mmseg(case):
    scores = summarise(sum(matrices(labels_of(case))), NAMES)
    assert abs(scores.miou - GOLDEN[f"out/v030/{case}/mIoU_nanmean"]) <= 1e-9
    assert abs(scores.mean_accuracy - GOLDEN[f"out/v030/{case}/mAcc_nanmean"]) <= 1e-9
    for theirs, ours in FIELDS.items():
        summary = GOLDEN[f"out/v122/{case}/summary_m{theirs}"]  # percent, two decimals
        assert abs(100 * nan_mean(getattr(scores, ours)) - summary) <= 0.00501, theirs


def test_renamed_and_ignored_and_foreign_labels():
    renamed = []
    for label in labels_of("plain"):
        out = label.copy()
        out[label == 0], out[label == 3] = 1, 0
        renamed.append(out)
    expected = GOLDEN["out/v030/label_map/areas_total_intersect_union_pred_label"]
    np.testing.assert_array_equal(areas(sum(matrices(renamed))), expected)

    ignored = confusion(GOLDEN["in/pred0"], np.full_like(GOLDEN["in/label0"], 255), CLASSES)
    np.testing.assert_array_equal(areas(ignored), GOLDEN["out/v030/all_ignored/areas"])

    foreign = confusion(GOLDEN["in/pred0"], GOLDEN["in/label_out_of_range0"], CLASSES)
    np.testing.assert_array_equal(areas(foreign), GOLDEN["out/v030/out_of_range_label/areas"])
    assert foreign[-1].sum() > 0


def test_by_hand():
    pred = np.uint8([[0, 0, 1], [1, 1, 0]])
    label = np.uint8([[0, 1, 1], [255, 7, 0]])
    matrix = confusion(pred, label, 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]
    scores = summarise(matrix, ["a", "b", "c"])
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 3, np.nan])
    assert scores.miou == pytest.approx(0.5) and scores.pixel_accuracy == pytest.approx(3 / 4)
    assert scores.mean_accuracy == pytest.approx((1 + 1 / 2) / 2)


def test_nothing_labelled_is_nan_not_a_crash():
    scores = summarise(np.zeros((3, 2), np.int64), ["a", "b"])
    assert np.isnan([scores.miou, scores.mean_accuracy, scores.pixel_accuracy]).all()
    assert "n/a" in table(scores)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="predictions 0..3"):
        confusion(np.uint8([[0, 3]]), np.uint8([[0, 0]]), 3)
    with pytest.raises(ValueError, match="but label is"):
        confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3)


def test_table_lines():
    scores = summarise(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0], [0, 0, 0]]), ["road", "sky", "x"])
    head, road, sky, absent, means, pixels = table(scores).splitlines()
    assert head.split() == ["class", "IoU", "recall", "precision", "F-score", "pixels"]
    assert road.split() == ["road", "75.00", "75.00", "100.00", "85.71", "50.00%"]
    assert sky.split() == ["sky", "80.00", "100.00", "80.00", "88.89", "50.00%"]
    assert absent.split() == ["x", "n/a", "n/a", "n/a", "n/a", "0.00%"]
    assert means.split()[-4:] == ["77.50", "87.50", "90.00", "87.30"]
    assert pixels.split() == ["pixel", "accuracy", "87.50"]
    assert len({len(line) for line in (head, road, sky, absent)}) == 1
