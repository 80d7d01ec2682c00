"""CTS (Lu et al., CVPR 2023): the k windows of 2x2 patches most surely of one class share a token.

k is fixed, so that every image keeps N - 3k tokens whatever it shows (section 3.2 of the paper).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.errors import UserError


@dataclass(frozen=True)
class Share:
    """``k``: windows per image that are merged, all where there are fewer."""

    k: int

    def __post_init__(self):
        if self.k < 0:
            raise UserError(f"config.method.windows={self.k}: use 0 (nothing is merged) or more")

    @property
    def sides(self) -> tuple[int, ...]:
        return (2,) if self.k else ()

    def left(self, grid: tuple[int, int]) -> int:
        """Tokens of every image of ``grid`` (rows, columns of patches) that are left."""
        rows, columns = grid
        return rows * columns - 3 * min(self.k, rows // 2 * (columns // 2))

    def __call__(
        self, scores: Mapping[int, Float[Array, "B R C"]], grid: tuple[int, int]
    ) -> dict[int, Bool[Array, "B R C"]]:
        """Accepted windows by side, from the probability that a window is of one class."""
        del grid
        return {side: top_k(scores[side], self.k) for side in self.sides}


def top_k(score: Float[Array, "B R C"], k: int) -> Bool[Array, "B R C"]:
    """The k best of each image; of equals the first in raster order."""
    flat = score.reshape(len(score), -1)
    k = min(k, flat.shape[1])
    best = jax.lax.top_k(flat, k)[1]
    chosen = jnp.zeros(flat.shape, bool).at[jnp.arange(len(flat))[:, None], best].set(True)
    return chosen.reshape(score.shape)
