"""Interpolation as PyTorch does it (half-pixel centres, no antialiasing), exact in both directions.

Two forms of bilinear with the same numbers: matrix products (`resize_bilinear`), whose gradient is
again a product and which any exporter knows, and two-tap gathers (`interpolate`), several times
cheaper between large maps and indifferent to the size, which is only data to them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Taps(NamedTuple):
    """Output i of an axis is ``(1 - share[i]) * input[left[i]] + share[i] * input[right[i]]``."""

    left: Int[Array, " n_out"]
    right: Int[Array, " n_out"]
    share: Float[Array, " n_out"]


def bilinear_taps(n_in: int, n_out: int) -> Taps:
    """The taps (numpy, int32 and float32) of torch's align_corners=False bilinear on one axis."""
    centre = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    left = centre.astype(np.int32)
    return Taps(left, np.minimum(left + 1, n_in - 1), (centre - left).astype(np.float32))


@functools.lru_cache(maxsize=256)
def bilinear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """float32 [n_out, n_in]: the same weights as a matrix. Cached, hence read-only."""
    left, right, share = bilinear_taps(n_in, n_out)
    matrix = np.zeros((n_out, n_in), np.float32)
    rows = np.arange(n_out)
    matrix[rows, left] += 1.0 - share
    matrix[rows, right] += share
    matrix.setflags(write=False)
    return matrix


def resize_bilinear(x: Float[Array, "*n h w c"], size: tuple[int, int]) -> Float[Array, "*n H W c"]:
    """Resize the two axes before the last, as two matrix products; the same size is the identity.

    The products run in the full precision of ``x``: accelerators would round float32 to ten bits.
    """
    height, width = size
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if x.shape[-3] != height:
        x = product("Hh,...hwc->...Hwc", bilinear_matrix(x.shape[-3], height).astype(x.dtype), x)
    if x.shape[-2] != width:
        x = product("Ww,...hwc->...hWc", bilinear_matrix(x.shape[-2], width).astype(x.dtype), x)
    return x


def interpolate(x: Float[Array, "h w c"], rows: Taps, columns: Taps) -> Float[Array, "H W c"]:
    """Bilinear by gathering: ``rows`` and ``columns`` may be traced arrays."""
    share = rows.share[:, None, None]
    x = x[rows.left] * (1 - share) + x[rows.right] * share
    share = columns.share[:, None]
    return x[:, columns.left] * (1 - share) + x[:, columns.right] * share


def resize_position_embedding(
    positions: Float[Array, "r c D"], grid: tuple[int, int]
) -> Float[Array, "R C D"]:
    """torch's bicubic (a = -0.75, edge clamp, no antialiasing); the same grid is the identity."""
    if positions.shape[:2] == grid:
        return positions
    shape = (*grid, positions.shape[-1])
    return jax.image.resize(positions, shape, "cubic-pytorch", antialias=False)
