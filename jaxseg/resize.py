"""Interpolation as PyTorch does it (half-pixel centres, no antialiasing), exact in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=256)
def bilinear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """float32 [n_out, n_in]: weights of torch's align_corners=False bilinear along one axis."""
    centre = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    left = np.minimum(centre.astype(np.int64), n_in - 1)
    right = np.minimum(left + 1, n_in - 1)
    share = (centre - left).astype(np.float32)
    matrix = np.zeros((n_out, n_in), np.float32)
    rows = np.arange(n_out)
    matrix[rows, left] += 1.0 - share
    matrix[rows, right] += share
    return matrix


def resize_bilinear(
    x: Float[Array, "*n h w c"], size: tuple[int, int]
) -> Float[Array, "*n H W c"]:
    """Resize the two axes before the last, as two matrix products; the same size is the identity."""
    height, width = size
    if x.shape[-3] != height:
        x = jnp.einsum("Hh,...hwc->...Hwc", bilinear_matrix(x.shape[-3], height).astype(x.dtype), x)
    if x.shape[-2] != width:
        x = jnp.einsum("Ww,...hwc->...hWc", bilinear_matrix(x.shape[-2], width).astype(x.dtype), x)
    return x


def resize_position_embedding(
    positions: Float[Array, "r c D"], grid: tuple[int, int]
) -> Float[Array, "R C D"]:
    """torch's bicubic (a = -0.75, edge clamp, no antialiasing); the same grid is the identity."""
    if positions.shape[:2] == grid:
        return positions
    shape = (*grid, positions.shape[-1])
    return jax.image.resize(positions, shape, "cubic-pytorch", antialias=False)
