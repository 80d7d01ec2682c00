"""The fate Bypass: the chosen go through a span of blocks, the others wait on a map.

The map holds the last features of every slot of every image, [B, C, D]. A stage is: choose slots
of the map, run blocks (or a half of one) on them, write them back. Who is not chosen keeps its
features ("preserve") and may be chosen again, or reads as zero for the heads ("remove").

It is the canvas of `jaxseg.tokens.Carry` with features instead of scores, and ``owner`` says which
slot of the working buffer holds a row of the map, so that writing back is `readout`. Decisions see
*rows*, numbers [B, C, ...] with a row per image, wherever the chosen lie: they are the same code
masked and packed.
"""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from jaxseg.tokens import Carry, Rows, readout


class Cut(NamedTuple):
    """Where a method decides: before a block (0-based), or ``inside`` it, between its halves."""

    block: int
    inside: bool = False

    @property
    def position(self) -> int:
        """In half blocks from the first: attention is even, MLP odd."""
        return 2 * self.block + self.inside


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("x", "layout", "owner", "canvas", "left", "window"),
        *("inside", "weight", "reading", "memory", "noise", "taps"),
    ],
    meta_fields=["grid"],
)
@dataclass(frozen=True)
class Journey(Carry):
    """A `Carry` whose tokens come and go; ``canvas`` is the map, ``owner`` [B, C] has all its rows.

    inside: chosen at the last cut; None before the first. weight: in training, how much of what the
    chosen have become is written back, with its gradient; None: all. reading: the same for those
    that heads read, where the others are removed. memory: what a method remembers per row.
    noise: a number per image that random choices at inference follow from. taps: the map after each
    of the blocks that heads are going to read.
    """

    inside: Bool[Array, "B C"] | None = None
    weight: Float[Array, "B C"] | None = None
    reading: Float[Array, "B C"] | None = None
    memory: Float[Array, "B C"] | None = None
    noise: UInt32[Array, " B"] | None = None
    taps: tuple[Float[Array, "B C D"], ...] = ()


class Choice(NamedTuple):
    """A decision at a cut; it moves nothing.

    chosen: the slots that the next blocks work on. Class tokens always do, whatever it says.
    count: how many patches of every image that is, where it is known beforehand; None: it depends.
    weight: in training ``chosen`` as numbers, exactly 0 or 1, with a gradient. policy: whether
    attention weighs its keys by it, too. memory: what to remember for the next cut.
    fused: one more slot that the next blocks work on.
    """

    chosen: Bool[Array, "B C"]
    count: int | None = None
    weight: Float[Array, "B C"] | None = None
    policy: bool = False
    memory: Float[Array, "B C"] | None = None
    fused: Float[Array, "B D"] | None = None


class Look(NamedTuple):
    """What a method sees at a cut.

    number: of the cut. carry: the tokens as they lie, after the last block or half. rows: the same
    with a row per slot, [B, C, D]; those who wait with their last features. inside: who does not.
    patch: what is no class token. heard: class attention of every head and length of the value per
    row, where the method listens; 0 for those who wait. before: weight of the last cut (training).
    key: None means inference.
    """

    number: int
    carry: Journey
    rows: Float[Array, "B C D"]
    inside: Bool[Array, "B C"]
    patch: Bool[Array, " C"]
    heard: Float[Array, "B C h+1"] | None
    before: Float[Array, "B C"] | None
    key: Key[Array, ""] | None

    @property
    def patches(self) -> int:
        """Slots of an image that are no class token: patches, and what has been fused."""
        return self.rows.shape[1] - self.carry.layout.prefix

    def spread(self, per_slot: Float[Array, "*slots F"]) -> Float[Array, "B C F"]:
        """Numbers of the tokens as they lie, as rows; 0 for those who wait."""
        return spread(self.carry, per_slot)


def spread(
    carry: Journey,
    per_slot: Float[Array, "*slots F"],
    waiting: Float[Array, "B C F"] | None = None,
) -> Float[Array, "B C F"]:
    """Numbers of the working buffer as rows of the map; ``waiting`` for those who are not in it."""
    if carry.owner is not None:
        if waiting is None:
            waiting = jnp.zeros((*carry.owner.shape, per_slot.shape[-1]), per_slot.dtype)
        return readout(replace(carry, canvas=waiting), per_slot)
    if carry.layout.valid is None:
        return per_slot
    there = carry.layout.valid[..., None]
    return jnp.where(there, per_slot, jnp.zeros_like(per_slot) if waiting is None else waiting)


def rejoin(carry: Journey) -> Journey:
    """The chosen written back: ``canvas`` is the map as of now."""
    if carry.weight is None:
        return replace(carry, canvas=spread(carry, carry.x, carry.canvas))
    weight = carry.weight[..., None].astype(carry.x.dtype)
    return replace(carry, canvas=weight * carry.x + (1 - weight) * carry.canvas)


def read(carry: Journey, remove: bool) -> Float[Array, "B C D"]:
    """What heads see of the map: all of it, or zeros for those who wait."""
    if not remove or carry.inside is None:
        return carry.canvas
    kept = carry.inside if carry.reading is None else carry.reading
    return carry.canvas * kept[..., None].astype(carry.canvas.dtype)


def choose(carry: Journey, choice: Choice) -> Journey:
    """Book-keeping before tokens are laid out: ``x`` [B, C, D] holds what the chosen start from."""
    chosen, weight = choice.chosen, choice.weight
    if choice.fused is not None:
        carry = replace(
            carry,
            x=jnp.concatenate([carry.x, choice.fused[:, None]], axis=1),
            canvas=jnp.concatenate([carry.canvas, choice.fused[:, None]], axis=1),
        )
        chosen = jnp.pad(chosen, ((0, 0), (0, 1)), constant_values=True)
    first = jnp.arange(chosen.shape[1]) < carry.layout.prefix
    return replace(
        carry,
        inside=chosen | first,
        weight=None if weight is None else jnp.where(first, 1.0, weight),
        reading=None if weight is None else jnp.where(first, 1.0, weight),
        memory=choice.memory,
    )


def in_rows(carry: Journey, x: Float[Array, "B C D"]) -> Journey:
    """Everything in rows again, nothing hidden: what a decision hands to an executor."""
    return replace(carry, x=x, layout=Rows(None, carry.layout.prefix), owner=None)
