"""Segmentation metrics from one confusion matrix, by the definitions of mmsegmentation.

The matrix is summed over the whole set before anything is divided. All scores are fractions; NaN is
a class that the set does not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxseg.data.classes import IGNORE


def confusion(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [K+1, K]: pixels by label (row) and prediction (column) of one image; add them up.

    ``pred`` is int[H,W] in 0..K-1, ``label`` uint8[H,W]. Label 255 is ignored. Any other label
    outside 0..K-1 counts in row K: like in mmseg such a pixel is nobody's label, yet it makes the
    class predicted there worse.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction is {pred.shape} but label is {label.shape}")
    if pred.size and not 0 <= pred.min() <= pred.max() < num_classes:
        raise ValueError(f"predictions {pred.min()}..{pred.max()} for {num_classes} classes")
    seen = label != IGNORE
    rows = np.minimum(label[seen].astype(np.int64), num_classes)
    counts = np.bincount(rows * num_classes + pred[seen], minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)


@dataclass(frozen=True, eq=False)
class Scores:
    """Fractions: float64[K] per class, and the three means that papers report.

    ``recall`` is mmseg's "Acc". ``dice`` and ``fscore`` are the same number, except for a class
    that is predicted but never right: it has dice 0 but no F-score (0 / 0), as in mmseg. A class
    that is never labelled has no recall.
    """

    names: tuple[str, ...]
    iou: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    dice: np.ndarray
    fscore: np.ndarray
    pixels: np.ndarray  # int64[K]: labelled pixels
    pixel_accuracy: float

    @property
    def miou(self) -> float:
        """Mean over the classes that are labelled or predicted anywhere."""
        return nan_mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes that are labelled anywhere."""
        return nan_mean(self.recall)


def summarise(matrix: np.ndarray, names: Sequence[str]) -> Scores:
    """Scores of a (summed) `confusion` matrix."""
    hit = np.diagonal(matrix[:-1]).astype(np.float64)
    labelled, predicted = matrix[:-1].sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an absent class
        recall, precision = hit / labelled, hit / predicted
        return Scores(
            names=tuple(names),
            iou=hit / (labelled + predicted - hit),
            recall=recall,
            precision=precision,
            dice=2 * hit / (labelled + predicted),
            fscore=2 * precision * recall / (precision + recall),
            pixels=labelled,
            pixel_accuracy=ratio(hit.sum(), labelled.sum()),
        )


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where there is nothing."""
    return float(part / whole) if whole else float("nan")


def nan_mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def percent(fraction: float) -> str:
    """Two decimals as papers print them, without the sign; "n/a" for NaN."""
    return "n/a" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def table(scores: Scores) -> str:
    """A line per class and the means, in percent, as text for a terminal."""
    wide = max(len(name) for name in (*scores.names, "mean of classes"))
    columns = {
        "IoU": scores.iou,
        "recall": scores.recall,
        "precision": scores.precision,
        "F-score": scores.fscore,
    }
    share = scores.pixels / max(1, scores.pixels.sum())
    lines = [f"{'class':{wide}}" + "".join(f"{title:>11}" for title in (*columns, "pixels"))]
    for k, name in enumerate(scores.names):
        cells = [percent(column[k]) for column in columns.values()] + [f"{share[k]:.2%}"]
        lines.append(f"{name:{wide}}" + "".join(f"{cell:>11}" for cell in cells))
    means = "".join(f"{percent(nan_mean(column)):>11}" for column in columns.values())
    lines.append(f"{'mean of classes':{wide}}{means}")
    lines.append(f"{'pixel accuracy':{wide}}{percent(scores.pixel_accuracy):>11}")
    return "\n".join(lines)
