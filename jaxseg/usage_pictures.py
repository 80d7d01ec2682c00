"""Pictures of who goes through which blocks: RGBA per patch, laid over images, and on one sheet."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Num, UInt8

from jaxseg import viz
from jaxseg.bypass import Cut
from jaxseg.data.classes import Classes
from jaxseg.predict_pictures import smaller
from jaxseg.usage import spans

_SKIPPED = 206, 178, 232, 225  # RGBA over the patches that skip a block: in no street, no room
_WIDE, _NARROW = 480, 320  # pixels of image and heat map, and of masks, on a sheet
_ACROSS = 3  # masks beside each other on a sheet


def colours(values: Num[np.ndarray, "*n"], low: float, high: float) -> UInt8[np.ndarray, "*n 4"]:
    """RGBA from dark (``low``) to bright (``high``), even steps of brightness."""
    share = (np.asarray(values, float) - low) / max(high - low, 1e-9)
    return matplotlib.colormaps["viridis"](np.clip(share, 0.0, 1.0), bytes=True)


def heat(through: Bool[np.ndarray, "L r c"], cuts: Sequence[Cut]) -> UInt8[np.ndarray, "r c 4"]:
    """How many blocks each patch goes through, between those that all do and all there are."""
    return colours(through.sum(axis=0), *value_range(cuts, len(through)))


def veil(mask: Bool[np.ndarray, "r c"]) -> UInt8[np.ndarray, "r c 4"]:
    """Dark where patches skip, nothing over the others."""
    return np.where(mask[..., None], 0, np.array(_SKIPPED)).astype(np.uint8)


def over(
    image: UInt8[np.ndarray, "h w 3"], tokens: UInt8[np.ndarray, "r c 4"], patch: int
) -> UInt8[np.ndarray, "h w 3"]:
    """RGBA of each patch over the pixels it covers."""
    height, width = image.shape[:2]
    row, column = np.arange(height)[:, None] // patch, np.arange(width) // patch
    colour = tokens[row, column].astype(np.float32)
    opacity = colour[..., 3:] / 255
    return (image * (1 - opacity) + colour[..., :3] * opacity).round().astype(np.uint8)


def sheet(
    image: UInt8[np.ndarray, "h w 3"],
    through: Bool[np.ndarray, "L r c"],
    cuts: Sequence[Cut],
    patch: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image beside its heat map and legend; below, who goes on after each cut."""
    low, high = value_range(cuts, len(through))
    counts = range(low, high + 1)
    steps = colours(np.array(counts), low, high)[:, :3].tolist()
    legend = Classes(tuple(map(str, counts)), tuple(map(tuple, steps)))
    top = [
        _cell("image", image, _WIDE),
        _cell(heat_text(through), over(image, heat(through, cuts), patch), _WIDE),
        viz.sheet([[viz.legend(legend, 60)]], ["blocks"]),
    ]
    masks = [
        _cell(text, over(image, veil(mask), patch), _NARROW)
        for text, mask in masks_of(through, cuts)
    ]
    rows = [masks[i : i + _ACROSS] for i in range(0, len(masks), _ACROSS)]
    return _stacked([_stacked(row, axis=1) for row in (top, *rows)], axis=0)


def _cell(title: str, panel: np.ndarray, width: int) -> np.ndarray:
    """A panel of ``width`` under its title."""
    height = max(1, round(len(panel) * width / panel.shape[1]))
    if panel.shape[1] < width:  # patches stay squares
        times = -(-width // panel.shape[1])
        panel = panel.repeat(times, axis=0).repeat(times, axis=1)
    return viz.sheet([[smaller(panel, (height, width))]], [title])


def _stacked(cells: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Beside (1) or below (0) each other, filled up with white."""
    other = 1 - axis
    most = max(cell.shape[other] for cell in cells)
    missing = [(0, most - cell.shape[other]) for cell in cells]
    pads = [[room, (0, 0)] if axis else [(0, 0), room] for room in missing]
    filled = [
        np.pad(cell, [*pad, (0, 0)], constant_values=255)
        for cell, pad in zip(cells, pads, strict=True)
    ]
    return np.concatenate(filled, axis=axis)


def value_range(cuts: Sequence[Cut], blocks: int) -> tuple[int, int]:
    """The fewest and the most blocks that a patch can go through."""
    return min(cuts[0].block, blocks), blocks


def heat_text(through: np.ndarray) -> str:
    return f"blocks of each patch: {through.sum(axis=0).mean():.1f} of {len(through)} on average"


def masks_of(through: np.ndarray, cuts: Sequence[Cut]) -> list[tuple[str, np.ndarray]]:
    """What is said about each choice, and who goes on."""
    found = []
    for first, last in spans(cuts, len(through)):
        if last < first:
            continue
        mask = through[first - 1]
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        found.append((f"{layers}: {100 * mask.mean():.0f} %", mask))
    return found
