"""Sliding windows: where they lie, and how their scores become one map of the image.

The layout is mmsegmentation's, except that a side shorter than the crop is filled up to it with
zeros (the mean colour of a normalised image) where mmseg takes a smaller window: every window has
the one static shape. Scores of the filling are cut away, but the network has seen it.

A canvas is a score map in a shape that many images share, its sides rounded up to a `bucket`; where
the image ends in it, and what its size was originally, is data.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxseg.resize import Taps, bilinear_taps, interpolate

Size = tuple[int, int]  # (height, width)


def axis_starts(length: int, crop: int, stride: int) -> np.ndarray:
    """int32 [n]: first pixels of the windows along an axis; the last is shifted back inside."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return np.minimum(np.arange(count, dtype=np.int32) * stride, max(length - crop, 0))


def window_starts(size: Size, crop: Size, stride: Size) -> np.ndarray:
    """int32 [n, 2]: (row, column) where each window of an image of ``size`` begins."""
    rows, columns = (axis_starts(*axis) for axis in zip(size, crop, stride, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def cut(image: np.ndarray, starts: np.ndarray, crop: Size) -> np.ndarray:
    """float32 [n, *crop, 3]: the windows of an image [h, w, 3], zeros beyond its edge."""
    windows = np.zeros((len(starts), *crop, 3), np.float32)
    for window, (y, x) in zip(windows, starts, strict=True):
        part = image[y : y + crop[0], x : x + crop[1]]
        window[: part.shape[0], : part.shape[1]] = part
    return windows


def bucket(size: Size) -> Size:
    """Sides rounded up to multiples of 64 pixels."""
    height, width = (-(-side // 64) * 64 for side in size)
    return height, width


def canvas_size(size: Size, crop: Size) -> Size:
    """Where all windows of an image of ``size`` fit, in a shape that similar sizes share."""
    return bucket((max(size[0], crop[0]), max(size[1], crop[1])))


def coverage(
    size: Size, crop: Size, stride: Size, canvas: Size
) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " w"]]:
    """Windows over each row and each column (1 where none); the product counts those of a pixel."""
    counts = []
    for length, window, step, extent in zip(size, crop, stride, canvas, strict=True):
        count = np.zeros(extent, np.float32)
        for start in axis_starts(length, window, step):
            count[start : start + window] += 1
        counts.append(np.maximum(count, 1))
    return counts[0], counts[1]


@functools.lru_cache(maxsize=64)
def to_pixels(grid: Size, size: Size, patch: int) -> tuple[Taps, Taps]:
    """Taps from a token grid to the pixels of the input of ``size`` that it covers.

    The grid spans whole patches: what they reach beyond the input is cut, not stretched.
    """
    taps = (bilinear_taps(n, -(-s // patch) * patch) for n, s in zip(grid, size, strict=True))
    rows, columns = (
        Taps(*(values[:length] for values in axis)) for axis, length in zip(taps, size, strict=True)
    )
    return rows, columns


interpolated = jax.jit(lambda scores, way: interpolate(scores.astype(jnp.float32), *way))


@functools.partial(jax.jit, donate_argnums=0)
def add_windows(
    canvas: Float[Array, "h w K"],
    scores: Float[Array, "n r c K"],
    way: tuple[Taps, Taps],
    starts: Int[Array, "n 2"],
    real: Int[Array, ""],
) -> Float[Array, "h w K"]:
    """Adds the first ``real`` windows to the canvas (donated); the others only fill the batch.

    ``way`` leads from the token grid of a window to its pixels (`to_pixels`).
    """

    def add(i, canvas):
        pixels = interpolate(scores[i].astype(canvas.dtype), *way)
        corner = (starts[i, 0], starts[i, 1], jnp.zeros((), starts.dtype))
        under = jax.lax.dynamic_slice(canvas, corner, pixels.shape)
        return jax.lax.dynamic_update_slice(canvas, under + pixels, corner)

    return jax.lax.fori_loop(0, real, add, canvas)


class View(NamedTuple):
    """Scores of one resized, perhaps mirrored copy of an image, and the way back to its size."""

    canvas: Float[Array, "h w K"]
    coverage: tuple[Float[Array, " h"], Float[Array, " w"]] | None = None  # None: 1 everywhere
    taps: tuple[Taps, Taps] | None = None  # rows and columns of the original; None: same size


def taps(size: Size, original: Size, mirrored: bool) -> tuple[Taps, Taps]:
    """Taps from a view of ``size`` to the bucket of the original; mirrored ones turn it back."""
    rows, columns = (bilinear_taps(*axis) for axis in zip(size, original, strict=True))
    if mirrored:
        columns = Taps(*(values[::-1] for values in columns))
    height, width = bucket(original)
    return _fill(rows, height), _fill(columns, width)


def _fill(taps: Taps, length: int) -> Taps:
    return Taps(*(np.pad(values, (0, length - len(values))) for values in taps))


@functools.partial(jax.jit, donate_argnums=0)
def add_view(total: Float[Array, "H W K"] | None, view: View) -> Float[Array, "H W K"]:
    """``total`` (donated; None is zero) plus the scores of the view at the original's size."""
    scores = view.canvas.astype(jnp.float32)
    if view.coverage is not None:
        rows, columns = view.coverage
        scores = scores / (rows[:, None, None] * columns[:, None])
    if view.taps is not None:
        scores = interpolate(scores, *view.taps)
    return scores if total is None else total + scores


@jax.jit
def label_views(total: Float[Array, "H W K"] | None, last: View) -> UInt8[Array, "H W"]:
    """Argmax after adding the last view. One program: a single view's sum is never stored."""
    return jnp.argmax(add_view(total, last), axis=-1).astype(jnp.uint8)
