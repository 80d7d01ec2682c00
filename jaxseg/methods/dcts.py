"""dCTS, the merging of STEP (VISAPP 2025): windows of 2, 4, 8 and 16 patches, merged by threshold.

The paper states the sides, a threshold each (accepted where the score is at least tau) and no
order. Windows are nested, and here the largest accepted one wins. The token budget is ours: a bound
on the count, as CTS's k sets it, with supertokens as large as dCTS's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.errors import UserError
from jaxseg.merging import token_count, window_map

SIDES = (2, 4, 8, 16)
_HALVINGS = 24  # of the interval of margins: finer than float32 scores near 1 differ


@dataclass(frozen=True)
class Merge:
    """Which windows become one token.

    tau: (side, threshold) pairs; a threshold above 1 switches a side off.
    guard: a window is merged only if all windows of the smallest side in it are, too.
    budget: 0, or the number of tokens that an image may keep: the thresholds of all sides are moved
        together, down or up, until just that many or fewer are left. Where all windows merged
        leave more, they are merged and it is exceeded.
    """

    tau: tuple[tuple[int, float], ...]
    guard: bool = False
    budget: int = 0

    def __post_init__(self):
        for side, tau in self.tau:
            if not 0.0 <= tau <= 2.0:
                raise UserError(f"config.method.tau{side}={tau}: use 0 to 1, more than 1 is off")
        if self.budget < 0:
            raise UserError(f"config.method.budget={self.budget}: use 0 (off) or a token count")

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(side for side, tau in self.tau if tau <= 1.0)

    def __call__(
        self, scores: Mapping[int, Float[Array, "B R C"]], grid: tuple[int, int]
    ) -> dict[int, Bool[Array, "B R C"]]:
        """Accepted windows by side, from the probability that a window is of one class."""
        margins = {s: scores[s] - tau for s, tau in self.tau if tau <= 1.0}
        if not self.budget:
            return self._accepted(margins, jnp.zeros(len(next(iter(scores.values())))))
        return self._accepted(margins, self._shift(margins, grid))

    def _accepted(self, margins, shift: Float[Array, " B"]) -> dict[int, Bool[Array, "B R C"]]:
        found = {s: margin >= shift[:, None, None] for s, margin in margins.items()}
        if self.guard and found:
            smallest = min(found)
            for side in found:
                found[side] &= _all_inside(found[smallest], side // smallest, found[side].shape)
        return found

    def _shift(self, margins, grid: tuple[int, int]) -> Float[Array, " B"]:
        """The largest margin to ask for, per image, with which the budget is kept."""
        batch = len(next(iter(margins.values())))

        def halve(_, between):
            low, high = between  # low keeps the budget if any does
            middle = (low + high) / 2
            fits = token_count(window_map(self._accepted(margins, middle), grid)) <= self.budget
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

        start = jnp.full(batch, -2.0), jnp.full(batch, 2.0)
        return jax.lax.fori_loop(0, _HALVINGS, halve, start)[0]


def _all_inside(windows: Bool[Array, "B R C"], factor: int, shape) -> Bool[Array, "B R2 C2"]:
    rows, columns = (n * factor for n in shape[1:])
    inside = windows[:, :rows, :columns].reshape(shape[0], shape[1], factor, shape[2], factor)
    return inside.all(axis=(2, 4))
