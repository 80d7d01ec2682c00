"""Pictures of label maps. All but `confusion_picture` are uint8 RGB arrays in and out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.data.classes import IGNORE, Classes

_GREY = 128
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_GAP = 8


def colour(label: np.ndarray, classes: Classes) -> np.ndarray:
    """uint8[H,W] to uint8[H,W,3]: class colours; grey for 255 and for what is no class."""
    table = np.full((256, 3), _GREY, np.uint8)
    table[: len(classes)] = classes.colours
    return table[label]


def overlay(
    image: np.ndarray, label: np.ndarray, classes: Classes, alpha: float = 0.5
) -> np.ndarray:
    """Class colours over uint8[H,W,3], ``alpha`` of them; where ignored, the image, hatched."""
    mixed = (1 - alpha) * image + alpha * colour(label, classes)
    rows, columns = np.indices(label.shape, sparse=True)
    hatch = (rows + columns) % 10 < 2
    ignored = np.where(hatch[..., None], 0.4 * image + 0.6 * _GREY, image)
    return np.where((label == IGNORE)[..., None], ignored, mixed).round().astype(np.uint8)


def legend(classes: Classes, width: int = 656) -> np.ndarray:
    """Colour and name of each class, read down the columns, ``width`` pixels wide."""
    font = ImageFont.load_default(14)
    swatch, line = 18, 24
    widest = max(font.getlength(name) for name in classes.names)
    cell = round(widest) + swatch + 3 * _GAP
    columns = max(1, min(len(classes), width // cell))
    rows = -(-len(classes) // columns)
    page = Image.new("RGB", (width, rows * line), _PAPER)
    draw = ImageDraw.Draw(page)
    for k, (name, rgb) in enumerate(zip(classes.names, classes.colours, strict=True)):
        x, y = k // rows * cell, k % rows * line
        draw.rectangle((x, y + 3, x + swatch, y + line - 4), fill=tuple(rgb), outline=_INK)
        draw.text((x + swatch + _GAP, y + line // 2), name, _INK, font, anchor="lm")
    return np.asarray(page)


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> np.ndarray:
    """Rows of pictures of any sizes on one page, each row under its title."""
    font = ImageFont.load_default(15)
    title_height = 26
    heights = [title_height + max(len(picture) for picture in row) + _GAP for row in rows]
    widths = [sum(picture.shape[1] + _GAP for picture in row) + _GAP for row in rows]
    page = Image.new("RGB", (max(widths), sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    top = 0
    for row, title, height in zip(rows, titles, heights, strict=True):
        draw.text((_GAP, top + title_height // 2 + 2), title, _INK, font, anchor="lm")
        left = _GAP
        for picture in row:
            page.paste(Image.fromarray(picture), (left, top + title_height))
            left += picture.shape[1] + _GAP
        top += height
    return np.asarray(page)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes uint8[H,W,3], or a label map uint8[H,W], losslessly."""
    Image.fromarray(picture).save(path, format="PNG")


def confusion_picture(matrix: np.ndarray, classes: Classes, path: str | Path) -> None:
    """Draws a `jaxseg.metrics.confusion` matrix as PNG, every row as shares of its label.

    Rows of classes that are never labelled are hatched. The colour scale follows the square root,
    so that rare confusions can be seen beside the diagonal.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    matrix = matrix[:count]
    labelled = matrix.sum(axis=1)
    shares = matrix / np.maximum(labelled, 1)[:, None]
    many = count > 40  # too many for numbers in the cells
    side = max(5.0, min(0.5 * count + 2.5, 22.0))
    figure = Figure(figsize=(side + 1, side), dpi=140 if many else 100, layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="label")
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    for k in np.flatnonzero(labelled == 0):
        axes.axhspan(k - 0.5, k + 0.5, facecolor="0.9", edgecolor="0.65", hatch="////", linewidth=0)
    names = [n if seen else f"{n} (n/a)" for n, seen in zip(classes.names, labelled, strict=True)]
    text = {"fontsize": 6 if many else 9, "parse_math": False}
    axes.set_xticks(range(count), classes.names, rotation=90, **text)
    axes.set_yticks(range(count), names, **text)
    if many:
        axes.tick_params(top=True, labeltop=True, right=True, labelright=True)
    else:
        _write_shares(axes, shares, labelled > 0)
    bar = figure.colorbar(shown, shrink=0.5, aspect=30, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "10%", "25%", "50%", "100%"])
    figure.savefig(path, format="png")


def _write_shares(axes, shares: np.ndarray, seen: np.ndarray) -> None:
    for row, column in np.argwhere((shares >= 0.005) & seen[:, None]):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.35 else "black",
        )
