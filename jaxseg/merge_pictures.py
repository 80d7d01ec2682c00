"""Pictures of merged patches: superpatches over the image, and how many tokens images keep."""

import io
import math
import pathlib
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Int, UInt8

from jaxseg import viz
from jaxseg.evaluation import EvalResult
from jaxseg.inference import EvalSpec, fitted
from jaxseg.weights import write_atomically

_LINE = np.array([255, 232, 64], np.float32)  # of the outlines


def superpatches(
    image: UInt8[np.ndarray, "h w 3"], windows: Int[np.ndarray, "r c"], patch: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with an outline around every token (STEP, figure 3).

    ``windows``: side of the window that each patch is merged in. Merged ones are tinted, the larger
    the stronger.
    """
    height, width = image.shape[:2]
    row = np.arange(height)[:, None]
    column = np.arange(width)
    side = windows[row // patch, column // patch] * patch
    level = np.log2(side / patch)[..., None]
    tint = 0.12 * level
    shown = image.astype(np.float32) * (1 - tint) + _LINE * tint
    edge = (row % side == 0) | (column % side == 0)
    strength = np.where(edge, np.where(side > patch, 0.85, 0.3), 0.0)[..., None]
    return (shown * (1 - strength) + _LINE * strength).round().astype(np.uint8)


def side_by_side(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h W 3"]:
    """With a white gap between them."""
    gap = np.full((len(pictures[0]), 8, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def token_histogram(path: pathlib.Path, shares: dict[str, Sequence[float]]) -> None:
    """Shares of tokens left per image, a distribution per name (policy, labels)."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    bins = np.linspace(0.0, 1.0, 41)
    for name, values in shares.items():
        axis.hist(values, bins, alpha=0.6, label=f"{name}: mean {np.mean(values):.2f}")
    axis.set_xlabel("tokens left / patches")
    axis.set_ylabel("images")
    axis.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, content.getvalue())


def write_pictures(folder: pathlib.Path, result: EvalResult, how: EvalSpec, patch: int) -> None:
    """NAME.png for every sample, and tokens.png: how many tokens the images keep."""
    folder.mkdir(exist_ok=True)
    for sample in result.samples:
        rows, columns = (n * patch for n in sample.window.shape)
        seen = fitted(sample.image, how)[:rows, :columns]
        picture = superpatches(seen, sample.window, patch)
        viz.save_png(folder / f"{sample.name.replace('/', '_')}.png", picture)
    left = [
        float(alive[0]) / (math.prod(-(-side // patch) for side in size))
        for sizes, counts in zip(result.inputs, result.alive, strict=True)
        for size, alive in zip(sizes, counts, strict=True)
    ]
    token_histogram(folder / "tokens.png", {"inputs": left})
