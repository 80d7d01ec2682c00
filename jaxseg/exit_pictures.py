"""Pictures of early exits: where tokens of an image left, and how they differ over a data set.

A model has exits after some of its layers. At each exit, tokens whose prediction is confident leave
(DToP, Tang et al., ICCV 2023, shows this in figures 1, 3 and 4). Here ``left`` is int[r,c], one
number per token of the padded image: the exit at which it left, 0 for the first, -1 if at none.
All pictures are uint8 RGB arrays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxseg import viz
from jaxseg.data.classes import IGNORE, Classes

_PAPER, _INK, _SOFT, _GRID = (255, 255, 255), (32, 32, 32), (96, 101, 108), (232, 234, 237)
_PLAIN, _ACCENT = (176, 182, 190), (36, 98, 176)
# Early to late, evenly darker, so that the order survives any colour blindness and grey print.
_SCALE = (255, 214, 64), (226, 96, 72), (104, 16, 112)
_COVER = 0.5, 0.58  # opacity of the first and of the last exit
_BORDER = 0.55  # of a token's colour is left where it borders on another exit
_FADED = 0.25  # of the colours is left where tokens are still inside
_NARROW, _WIDE = 288, 640  # pixels; panels are scaled to lie between
_GAP = 8


def exit_map(
    image: UInt8[np.ndarray, "H W 3"],
    left: Int[np.ndarray, "r c"],
    stages: Sequence[str],
    patch: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image under a veil where tokens left, light for the first exit and dark for the last.

    ``stages`` names the exits, ``patch`` is a token's side in pixels. Lines part tokens of
    different exits. Tokens that stayed show the image unchanged. Raises ValueError: ``left`` does
    not cover the image, or holds an exit that ``stages`` has not.
    """
    height, width = image.shape[:2]
    _check(left, (height, width), stages, patch)
    shade, cover = _scale(len(stages))
    shade = np.concatenate([shade, np.zeros((1, 3))])  # the last row serves -1
    cover = np.append(cover, 0.0)
    stage = _pixels(left, (height, width), patch)
    lined = _borders(stage, max(1, width // _WIDE))[..., None]
    colour = shade[stage] * np.where(lined, _BORDER, 1.0)
    opacity = cover[stage][..., None]
    opacity = np.where(lined & (opacity > 0), 0.5 + opacity / 2, opacity)
    return ((1 - opacity) * image + opacity * colour).round().astype(np.uint8)


def _check(left: np.ndarray, size: tuple[int, int], stages: Sequence[str], patch: int) -> None:
    height, width = size
    grid = -(-height // patch), -(-width // patch)
    if left.shape != grid:
        raise ValueError(f"an image of {height}x{width} has {grid} tokens, but left {left.shape}")
    if not -1 <= left.min() <= left.max() < len(stages):
        raise ValueError(f"exits {left.min()}..{left.max()}, but the stages are {list(stages)}")


def _scale(count: int) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Colour 0..255 and opacity of each of ``count`` exits."""
    share = np.linspace(0, 1, count)
    channels = [np.interp(share, (0, 0.5, 1), channel) for channel in zip(*_SCALE, strict=True)]
    return np.stack(channels, axis=1), np.interp(share, (0, 1), _COVER)


def _pixels(tokens: np.ndarray, size: tuple[int, int], patch: int) -> np.ndarray:
    """[r,c] to [H,W]: each pixel has the number of its token."""
    return tokens.repeat(patch, axis=0).repeat(patch, axis=1)[: size[0], : size[1]]


def _borders(stage: Int[np.ndarray, "H W"], width: int) -> np.ndarray:
    """bool[H,W]: the pixels with another value ``width`` to the right, left, above or below."""
    lined = np.zeros(stage.shape, bool)
    rows, columns = stage[width:] != stage[:-width], stage[:, width:] != stage[:, :-width]
    lined[width:] |= rows
    lined[:-width] |= rows
    lined[:, width:] |= columns
    lined[:, :-width] |= columns
    return lined


def exit_titles(left: Int[np.ndarray, "r c"], layers: Sequence[int]) -> list[str]:
    """What share of all tokens left at each of ``layers``, and up to there."""
    titles = []
    for k, layer in enumerate(layers):
        title = f"layer {layer}: {_percent(np.mean(left == k))} left"
        if k:
            title += f", {_percent(np.mean((left >= 0) & (left <= k)))} in all"
        titles.append(title)
    return titles


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def panels(
    image: UInt8[np.ndarray, "H W 3"],
    label: UInt8[np.ndarray, "H W"] | None,
    stage_labels: Sequence[UInt8[np.ndarray, "H W"]],
    left: Int[np.ndarray, "r c"],
    layers: Sequence[int],
    classes: Classes,
    patch: int,
    tokens: UInt8[np.ndarray, "H W 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """One sheet: the image, where tokens had left after each exit, what was predicted there.

    ``layers`` are the 1-based layers of the exits; ``stage_labels`` are the predictions after each
    exit and, last, the final one. ``tokens``: what the exits are drawn over instead of the image,
    e.g. the image with the outlines of shared tokens (STEP, figure 8). The first row is image,
    exits, label; the second is legend, predictions at the exits, final prediction. Predictions at
    an exit are faded where tokens were still inside. Panels are scaled to legible widths. Raises
    ValueError as `exit_map` does, or when ``stage_labels`` is not one longer than ``layers``.
    """
    if len(stage_labels) != len(layers) + 1:
        raise ValueError(f"{len(stage_labels)} predictions for {len(layers)} exits and the end")
    stages = [f"left at layer {layer}" for layer in layers]
    _check(left, image.shape[:2], stages, patch)
    when = [np.where(left <= k, left, -1) for k in range(len(layers))]
    top = [("image", image)]
    for title, so_far in zip(exit_titles(left, layers), when, strict=True):
        top.append((title, exit_map(image if tokens is None else tokens, so_far, stages, patch)))
    if label is not None:
        title = "label, hatched where ignored" if (label == IGNORE).any() else "label"
        top.append((title, _painted(image, label, classes)))
    bottom = []
    for layer, predicted, so_far in zip(layers, stage_labels[:-1], when, strict=True):
        painted = _painted(image, predicted, classes)
        inside = _pixels(so_far, image.shape[:2], patch) < 0
        faded = (_FADED * painted + (1 - _FADED) * 255).round().astype(np.uint8)
        panel = np.where(inside[..., None], faded, painted)
        bottom.append((f"prediction at layer {layer}", panel))
    bottom.append(("final prediction", _painted(image, stage_labels[-1], classes)))
    shown = np.unique(np.stack([*stage_labels, *([] if label is None else [label])]))
    rows = [[_titled(*panel) for panel in row] for row in (top, bottom)]
    rows[1].insert(0, _legends(stages, shown, classes, rows[0][0].shape[1] - 2 * _GAP))
    return _grid(rows)


def _painted(image: np.ndarray, label: np.ndarray, classes: Classes) -> np.ndarray:
    return viz.overlay(image, label, classes, alpha=0.85)


def _titled(title: str, panel: np.ndarray) -> np.ndarray:
    """The panel at a legible width under its title."""
    height, width = panel.shape[:2]
    if width < _NARROW:
        times = -(-_NARROW // width)
        panel = panel.repeat(times, axis=0).repeat(times, axis=1)
    elif width > _WIDE:
        size = _WIDE, max(1, round(height * _WIDE / width))
        panel = np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BOX))
    return viz.sheet([[panel]], [title])


def _legends(
    stages: Sequence[str], shown: UInt8[np.ndarray, " n"], classes: Classes, width: int
) -> np.ndarray:
    """Colours of the exits and of the classes among the values ``shown``."""
    parts, titles = [], []
    if stages:
        colours = tuple(tuple(rgb) for rgb in _scale(len(stages))[0].round().astype(int).tolist())
        parts.append([viz.legend(Classes(tuple(stages), colours), width)])
        titles.append("tokens")
    known = [k for k in shown if k < len(classes)]
    if known:
        named = Classes(
            tuple(classes.names[k] for k in known), tuple(classes.colours[k] for k in known)
        )
        parts.append([viz.legend(named, width)])
        titles.append("classes, faded where tokens are still inside" if stages else "classes")
    return viz.sheet(parts, titles) if parts else np.full((1, width, 3), _PAPER, np.uint8)


def _grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures in cells of one width, each row as high as its highest."""
    wide = max(cell.shape[1] for row in rows for cell in row)
    columns = max(len(row) for row in rows)
    page = []
    for row in rows:
        strip = np.full((max(len(cell) for cell in row), columns * wide, 3), _PAPER, np.uint8)
        for k, cell in enumerate(row):
            strip[: len(cell), k * wide : k * wide + cell.shape[1]] = cell
        page.append(strip)
    return np.concatenate(page)


def bin_counts(values: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " bins"]:
    """How many values lie in each of ``bins`` equal parts of 0..1; what is outside is at the end.

    A part holds its lower edge; the last one holds 1 as well.
    """
    return np.histogram(np.clip(values, 0, 1), bins, (0, 1))[0]


def bar_heights(counts: Int[np.ndarray, " bins"], room: int) -> Int[np.ndarray, " bins"]:
    """Pixels: proportional to the counts, the highest is ``room``; what is not empty has a pixel"""
    heights = np.round(counts * (room / max(1, counts.max()))).astype(int)
    return np.maximum(heights, counts > 0)


def difficulty_histogram(
    confidences: Sequence[Float[np.ndarray, " n"]],
    layers: Sequence[int],
    thresholds: Sequence[float],
) -> UInt8[np.ndarray, "h w 3"]:
    """How confident the tokens graded at each exit were; those above the threshold stand out.

    One row per exit, in parts of 0.01; every row has its own scale of counts. Not every token
    above the threshold need leave: DToP keeps the most confident of each class as context.
    """
    rows = []
    for values, layer, threshold in zip(confidences, layers, thresholds, strict=True):
        title = difficulty_title(values, layer, threshold)
        row = _Row(title, bin_counts(values, 100), threshold, f"threshold {threshold:g}", threshold)
        rows.append(row)
    ticks = {k / 5: f"{k / 5:g}" for k in range(6)}
    return _histograms(rows, ticks, "confidence of a token of the sampled images", "tokens")


def difficulty_title(values: Float[np.ndarray, " n"], layer: int, threshold: float) -> str:
    """What share of the tokens graded at an exit was above the threshold."""
    if not len(values):
        return f"layer {layer}: no tokens graded"
    above = _percent(np.mean(values > threshold))
    return f"layer {layer}: {above} of {_thousands(len(values))} tokens above the threshold"


def shares_histogram(
    kept: Float[np.ndarray, "images exits"], layers: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    """How differently images behave: the share 0..1 of tokens still inside after each exit.

    One row per exit, in parts of 0.05, with the mean over the images marked.
    """
    rows = []
    for values, layer in zip(kept.T, layers, strict=True):
        mean = values.mean() if len(values) else None
        mark_text = f"mean {_percent(mean)}" if len(values) else ""
        rows.append(_Row(shares_title(values, layer), bin_counts(values, 20), mean, mark_text, 0.0))
    ticks = {k / 5: f"{20 * k} %" for k in range(6)}
    return _histograms(rows, ticks, "share of an image's tokens still inside", "images")


def shares_title(values: Float[np.ndarray, " images"], layer: int) -> str:
    """The least and the largest share that stayed, and of how many images."""
    if not len(values):
        return f"after layer {layer}: no images"
    least, most = _percent(values.min()), _percent(values.max())
    return f"after layer {layer}: {least} to {most} inside, over {_thousands(len(values))} images"


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")


class _Row(NamedTuple):
    """One histogram over 0..1. Bars from ``accent_from`` on have the strong colour."""

    title: str
    counts: Int[np.ndarray, " bins"]
    mark: float | None  # where a line stands
    mark_text: str
    accent_from: float


_PLOT_WIDTH, _PLOT_HEIGHT = 600, 130
_MARGIN_LEFT, _MARGIN_RIGHT = 76, 32
_ABOVE, _BELOW = 56, 34  # a row's title and mark; its ticks
_FOOT = 26


def _histograms(
    rows: Sequence[_Row], ticks: dict[float, str], x_label: str, y_label: str
) -> np.ndarray:
    """The rows below each other; ``ticks`` are the positions on 0..1 that are named."""
    step = _ABOVE + _PLOT_HEIGHT + _BELOW
    width = _MARGIN_LEFT + _PLOT_WIDTH + _MARGIN_RIGHT
    page = Image.new("RGB", (width, len(rows) * step + _FOOT), _PAPER)
    draw = ImageDraw.Draw(page)
    for k, row in enumerate(rows):
        _histogram(draw, row, k * step + _ABOVE, ticks, y_label)
    middle = _MARGIN_LEFT + _PLOT_WIDTH // 2, len(rows) * step + 6
    draw.text(middle, x_label, _SOFT, ImageFont.load_default(13), anchor="mm")
    return np.asarray(page)


def _histogram(
    draw: ImageDraw.ImageDraw, row: _Row, top: int, ticks: dict[float, str], y_label: str
) -> None:
    small = ImageFont.load_default(12)
    base, end = top + _PLOT_HEIGHT, _MARGIN_LEFT + _PLOT_WIDTH
    draw.text((_GAP, top - 44), row.title, _INK, ImageFont.load_default(15), anchor="lm")
    draw.text((_MARGIN_LEFT - _GAP, top - 16), y_label, _SOFT, small, anchor="rm")
    most = int(row.counts.max())
    for count in count_ticks(most):
        y = base - round(count / max(1, most) * _PLOT_HEIGHT)
        draw.line((_MARGIN_LEFT, y, end, y), _GRID)
        draw.text((_MARGIN_LEFT - _GAP, y), _thousands(count), _SOFT, small, anchor="rm")
    edges = _x(np.linspace(0, 1, len(row.counts) + 1))
    split = _x(row.accent_from)
    heights = bar_heights(row.counts, _PLOT_HEIGHT)
    for start, stop, height in zip(edges[:-1], edges[1:] - 1, heights, strict=True):
        # PIL's rectangles hold their last row and column; one column parts the bars.
        if height:
            draw.rectangle((start, base - height, stop - 1, base - 1), _PLAIN)
        if height and stop > split:
            draw.rectangle((max(start, split), base - height, stop - 1, base - 1), _ACCENT)
    draw.line((_MARGIN_LEFT, base, end, base), _INK)
    for position, name in ticks.items():
        x = _x(position)
        draw.line((x, base, x, base + 4), _INK)
        draw.text((x, base + 14), name, _SOFT, small, anchor="mm")
    if row.mark is not None:
        x = _x(row.mark)
        draw.line((x, top - 22, x, base), _INK)
        anchor, shift = ("rm", -6) if row.mark > 0.5 else ("lm", 6)
        draw.text((x + shift, top - 16), row.mark_text, _INK, small, anchor=anchor)


def _x(position: float | np.ndarray) -> np.ndarray:
    """The page's columns of positions on 0..1; a threshold beyond stands at the end."""
    return _MARGIN_LEFT + np.rint(np.clip(position, 0, 1) * _PLOT_WIDTH).astype(int)


def count_ticks(most: int) -> list[int]:
    """At most six whole numbers from 0 to ``most``, at steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** max(0, len(str(most)) - 2)
    step = next(k * power for k in (1, 2, 5, 10, 20, 50) if 5 * k * power >= most)
    return list(range(0, most + 1, step))
