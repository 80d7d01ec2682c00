"""Evo-ViT (Xu et al., AAAI 2022): the informative tokens are transformed, the others wait.

A token's standing is what the class token pays to it, over all heads: that of block 4 to begin
with, then in every block half of what it was and half of what the block says, for the tokens that
went through it. Before each block from 5 on the int(keep x patches) of the best standing are
chosen; the others stay as they are and may come back. The "fast update" of the paper (placeholders
receive the change of a representative token) is left out as in its DeiT code. No parameters.

As in SViT's version for dense prediction, tokens are chosen anew before every block, where the
original moves them only before blocks 5 and 9; the class token is an artificial one.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxseg.bypass import Choice, Cut, Look
from jaxseg.errors import UserError
from jaxseg.losses import Term
from jaxseg.selection import best_of_row


@dataclass(frozen=True)
class Wait:
    """Who waits while others go through a block.

    layers: (1-based) before which tokens are chosen, 2 or later, one after the other. keep: shares
    of the tokens there are.
    """

    layers: tuple[int, ...] = tuple(range(5, 13))
    keep: tuple[float, ...] = (0.5,) * 8

    preserve = True
    listens = True
    fuses = False
    needs_class_token = True
    fixed_counts = True
    distil = 0.0

    def __post_init__(self):
        first, last = self.layers[0], self.layers[-1]
        if first < 2 or self.layers != tuple(range(first, last + 1)):
            raise UserError(
                f"config.method.layers={self.layers}: Evo-ViT listens to every block from the one "
                f"before the first; start at 2 or later and leave none out"
            )

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(Cut(layer - 1) for layer in self.layers)

    def gates(self, width: int) -> list:
        del width
        return []

    def choose(self, gates, look: Look) -> Choice:
        del gates
        standing = look.heard[..., :-1].sum(axis=-1)
        if look.carry.memory is not None:
            old = look.carry.memory
            standing = jnp.where(look.inside, 0.5 * old + 0.5 * standing, old)
        count = look.count(lambda n: max(1, int(self.keep[look.number] * n)))
        return Choice(best_of_row(standing, look.patch, count), count, memory=standing)

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        del choices, prefix, batch_axis
        return {}

    def macs(self, width: int, patches: int, before, after) -> float:
        """The row of the class token in every block that is listened to."""
        del patches, after
        return width * sum(before)
