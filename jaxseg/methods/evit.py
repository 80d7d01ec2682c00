"""EViT (Liang et al., ICLR 2022): what the class token attends to stays, the rest is fused.

In the middle of three blocks, after attention: of the ``n`` tokens that are left the ceil(keep x n)
with the largest class attention, mean over heads, go on, and beside them one token fused from the
others, weighed by their attention (not normalised; section 3.2). The fused one competes at the next
such block like any other. No parameters.

For dense prediction (SViT, supplement D) the class token is an artificial one, trained from
scratch, and who has been dropped keeps the features it had before that block ("preserve"), or reads
as zero. The fused tokens belong to no place and are not read.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from jaxseg.bypass import Choice, Cut, Look
from jaxseg.losses import Term
from jaxseg.selection import best_of_row


@dataclass(frozen=True)
class Fuse:
    """Who goes on in which blocks.

    layers: (1-based) in which tokens are chosen. keep: shares of those that are left then. fuse:
    whether the others become one more token.
    """

    layers: tuple[int, ...] = (4, 7, 10)
    keep: tuple[float, ...] = (0.7, 0.7, 0.7)
    preserve: bool = True
    fuse: bool = True

    listens = True
    needs_class_token = True
    fixed_counts = True
    distil = 0.0

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(Cut(layer - 1, inside=True) for layer in self.layers)

    @property
    def fuses(self) -> bool:
        return self.fuse

    def gates(self, width: int) -> list:
        del width
        return []

    def choose(self, gates, look: Look) -> Choice:
        del gates
        attention = look.heard[..., :-1].mean(axis=-1)
        open_ = look.inside & look.patch
        count = look.count(lambda n: self._count(look.number, n))
        chosen = best_of_row(attention, open_, count)
        if not self.fuse:
            return Choice(chosen, count)
        share = jnp.where(open_ & ~chosen, attention, 0.0).astype(look.rows.dtype)
        return Choice(chosen, count, fused=jnp.einsum("bc,bcd->bd", share, look.rows))

    def _count(self, number: int, there: int) -> int:
        """How many go on from cut ``number``, of tokens that include one fused at each before."""
        left = there - number * self.fuse
        for keep in self.keep[: number + 1]:
            kept = math.ceil(keep * left)
            left = kept + self.fuse
        return kept

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        del choices, prefix, batch_axis
        return {}

    def macs(self, width: int, patches: int, before, after) -> float:
        """The row of the class token, and the fused token."""
        del patches
        return width * (sum(before) + self.fuse * (sum(before) - sum(after)))
