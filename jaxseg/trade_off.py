"""Accuracy against cost: rows of figures as a picture and as CSV."""

import csv
import io
import pathlib
from collections.abc import Sequence

import matplotlib

from jaxseg.weights import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_MARKERS = "osD^v<>PXhdp8"  # 13: beside ten colours all lines differ


def picture(rows: Sequence[dict], reference: dict, path: pathlib.Path, title: str = "") -> None:
    """mIoU against GMACs and against images/s, a line through all rows of one ``label``.

    Every row, and ``reference``, a star, has label, miou (0 to 1), gmacs_per_image and
    images_per_second. ``title`` heads the legend.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), sharey=True, layout="constrained")
    for axis, key, label in zip(
        axes,
        ("gmacs_per_image", "images_per_second"),
        ("GMACs per image", "images per second"),
        strict=True,
    ):
        for i, name in enumerate(dict.fromkeys(row["label"] for row in rows)):
            of = sorted((row for row in rows if row["label"] == name), key=lambda row: row[key])
            axis.plot(
                [row[key] for row in of],
                [100 * row["miou"] for row in of],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=5,
                label=name,
            )
        star = (reference[key], 100 * reference["miou"])
        axis.plot(*star, "k*", markersize=12, label=reference["label"])
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU in %")
    figure.legend(*axes[0].get_legend_handles_labels(), title=title, loc="outside right center")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, content.getvalue())


def as_csv(rows: Sequence[dict]) -> str:
    """A line per row; lists of shares become one field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _field(value) for name, value in row.items()})
    return text.getvalue()


def _field(value):
    return " ".join(f"{each:.4f}" for each in value) if isinstance(value, list) else value
