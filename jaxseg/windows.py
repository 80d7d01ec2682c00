"""Sliding windows: where they lie, and how their scores become one map.

The layout is mmsegmentation's, except that a side shorter than the crop is filled up to it with zeros
(the mean colour of a normalised image) where mmseg takes a smaller window: every window has the one
static shape. Scores of the filling are cut away, but the network has seen it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Size = tuple[int, int]  # (height, width)


def axis_starts(length: int, crop: int, stride: int) -> np.ndarray:
    """int32 [n]: first pixels of the windows along an axis; the last is shifted back inside."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return np.minimum(np.arange(count, dtype=np.int32) * stride, max(length - crop, 0))


def window_starts(size: Size, crop: Size, stride: Size) -> np.ndarray:
    """int32 [n, 2]: (row, column) where each window of an image of ``size`` begins."""
    rows, columns = (axis_starts(*axis) for axis in zip(size, crop, stride, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def filled(size: Size, crop: Size) -> Size:
    """Size of an image after filling it up to at least one crop."""
    return max(size[0], crop[0]), max(size[1], crop[1])


def cut(image: np.ndarray, starts: np.ndarray, crop: Size) -> np.ndarray:
    """float32 [n, *crop, 3]: the windows of an image [h, w, 3], zeros beyond its edge."""
    height, width = image.shape[:2]
    windows = np.zeros((len(starts), *crop, 3), np.float32)
    for window, (y, x) in zip(windows, starts, strict=True):
        part = image[y : min(y + crop[0], height), x : min(x + crop[1], width)]
        window[: part.shape[0], : part.shape[1]] = part
    return windows


def coverage(size: Size, crop: Size, stride: Size) -> tuple[np.ndarray, np.ndarray]:
    """float32 [h] and [w]: windows over each row and column; a pixel's count is the product."""
    counts = []
    for length, window, step in zip(filled(size, crop), crop, stride, strict=True):
        count = np.zeros(length, np.float32)
        for start in axis_starts(length, window, step):
            count[start : start + window] += 1
        counts.append(count)
    return counts[0], counts[1]


def add_windows(
    canvas: Float[Array, "h w K"],
    scores: Float[Array, "n ch cw K"],
    starts: Int[Array, "n 2"],
    real: Int[Array, ""],
) -> Float[Array, "h w K"]:
    """Adds the first ``real`` windows to the canvas; the others fill a batch up."""
    crop = scores.shape[1:]

    def add(i, canvas):
        corner = (starts[i, 0], starts[i, 1], jnp.zeros((), starts.dtype))
        under = jax.lax.dynamic_slice(canvas, corner, crop)
        return jax.lax.dynamic_update_slice(canvas, under + scores[i].astype(canvas.dtype), corner)

    return jax.lax.fori_loop(0, real, add, canvas)


def slide_scores(
    score: Callable, image: Float[Array, "1 h w 3"], crop: Size, stride: Size
) -> Float[Array, "h w K"]:
    """Scores of a whole image, averaged where windows overlap.

    ``score`` maps float32 [n, *crop, 3] to [n, *crop, K] and gets all windows at once.
    """
    size = image.shape[1:3]
    starts = window_starts(size, crop, stride)
    scores = score(cut(np.asarray(image[0]), starts, crop))
    canvas = jnp.zeros((*filled(size, crop), scores.shape[-1]), jnp.float32)
    canvas = add_windows(canvas, scores, starts, len(starts))
    rows, columns = coverage(size, crop, stride)
    return (canvas / (rows[:, None, None] * columns[:, None]))[: size[0], : size[1]]
