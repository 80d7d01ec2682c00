"""What becomes of the tokens that a method has chosen: the book-keeping, apart from any layout."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.tokens import Carry, first_owner


class Grades(NamedTuple):
    """What a method decides by, over all S slots, flattened.

    confidence: the best class score of a slot. label: that class. image: which image it is of.
    graded: whether the slot may leave at all (living, and no class token). images, classes: how
    many there are.
    """

    confidence: Float[Array, " S"]
    label: Int[Array, " S"]
    image: Int[Array, " S"]
    graded: Bool[Array, " S"]
    images: int
    classes: int


class Plan(NamedTuple):
    """A decision about all S slots; it moves nothing.

    leaves: the patches that this slot speaks for are settled now.
    context: of those, the slots that go on all the same, with no patch to answer for, so that the
        others can attend to them; None: no slot does.
    target: slot whose place is taken by the mean over all slots that name it; slots that name
        themselves alone stay as they are. None: all do.
    """

    leaves: Bool[Array, " S"]
    context: Bool[Array, " S"] | None = None
    target: Int[Array, " S"] | None = None

    @property
    def goes(self) -> Bool[Array, " S"]:
        """Slots that are dropped."""
        return self.leaves if self.context is None else self.leaves & ~self.context


def exit_(carry: Carry, plan: Plan, number: int) -> Carry:
    """Patches of the leaving slots keep what the canvas says; they have left at ``number``."""
    owner, left = carry.owner, carry.left
    if owner is None:
        batch, slots = carry.x.shape[:2]
        owner = first_owner(carry.layout, batch, slots)
    if left is None:
        left = jnp.full(owner.shape, -1, jnp.int32)
    leaves = (owner >= 0) & plan.leaves[jnp.maximum(owner, 0)]
    x = carry.x
    if plan.target is not None:
        x = _averaged(x.reshape(-1, x.shape[-1]), plan.target).reshape(x.shape)
    return replace(
        carry,
        x=x,
        owner=jnp.where(leaves, -1, owner),
        left=jnp.where(leaves, number, left),
    )


def _averaged(x: Float[Array, "S D"], target: Int[Array, " S"]) -> Float[Array, "S D"]:
    # In float32: a count in bfloat16 stops at 256.
    total = jnp.zeros(x.shape, jnp.float32).at[target].add(x.astype(jnp.float32))
    count = jnp.zeros(len(x), jnp.float32).at[target].add(1.0)
    mean = (total / jnp.maximum(count, 1.0)[:, None]).astype(x.dtype)
    return jnp.where((count > 1)[:, None], mean, x)
