"""The fate Bypass: the chosen go through a span of blocks, the others wait on a map.

The map holds the last features of every token of every image in *rows*, [B, C, D]. A stage is:
choose rows of the map, run blocks (or a half of one) on them, write them back. Who is not chosen
keeps its features ("preserve") and may be chosen again, or reads as zero for the heads ("remove").

So there are two steps from a patch to the buffer that blocks work on, and both are a gather
(`jaxseg.tokens.readout`): ``owner`` names the row that speaks for a patch, which is where sharing a
token and leaving early are settled; ``slot`` names the place of a row in the buffer. Decisions see
rows, wherever the chosen lie: they are the same code masked and packed.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxseg.errors import UserError
from jaxseg.fates import Plan, exit_
from jaxseg.tokens import Carry, Packed, Rows, readout


class Cut(NamedTuple):
    """Where a method decides: before a block (0-based), or ``inside`` it, between its halves.

    ``leaves``: it is an exit, where a head has decided who leaves for good.
    """

    block: int
    inside: bool = False
    leaves: bool = False

    @property
    def position(self) -> int:
        """In half blocks from the first: attention is even, MLP odd."""
        return 2 * self.block + self.inside


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("x", "layout", "owner", "canvas", "left", "window"),
        *("map", "slot", "there", "inside", "weight", "reading", "memory", "heard"),
        *("noise", "taps"),
    ],
    meta_fields=["grid"],
)
@dataclass(frozen=True)
class Journey(Carry):
    """A `Carry` whose tokens come and go; ``owner`` points to rows of the map, not into ``x``.

    slot: index into ``x`` (flattened) of every row, -1 while it waits; None: rows lie as they are.
    there: rows that are tokens, not merged away and not left; None: all. A class token always is.
    inside: chosen at the last cut; None before the first. weight: in training, how much of what the
    chosen have become is written back, with its gradient; None: all. reading: the same for those
    that heads read, where the others are removed. memory: what a method remembers per row. heard:
    class attention of the block just run, see `Look`, where the method listens.
    noise: a number per image that random choices at inference follow from. taps: the map after each
    of the blocks that the next head is going to read.
    """

    map: Float[Array, "B C D"] | None = None
    slot: Int[Array, "B C"] | None = None
    there: Bool[Array, "B C"] | None = None
    inside: Bool[Array, "B C"] | None = None
    weight: Float[Array, "B C"] | None = None
    reading: Float[Array, "B C"] | None = None
    memory: Float[Array, "B C"] | None = None
    heard: Float[Array, "B C h+1"] | None = None
    noise: UInt32[Array, " B"] | None = None
    taps: tuple[Float[Array, "B C D"], ...] = ()

    def moved(self, x: Float[Array, "S D"], layout: Packed, to: Int[Array, " S"]) -> "Journey":
        """From rows: they themselves stay where they are."""
        return replace(self, x=x, layout=layout, slot=to.reshape(self.map.shape[:2]))


class Choice(NamedTuple):
    """A decision at a cut; it moves nothing.

    chosen: the rows that the next blocks work on. Class tokens always do, whatever it says.
    count: how many patches of every image that is, where it is known beforehand; None: it depends.
    weight: in training ``chosen`` as numbers, exactly 0 or 1, with a gradient; None behind an exit,
    where those of the last cut hold on. policy: whether attention weighs its keys by them, too.
    memory: what to remember for the next cut. fused: one more row that the next blocks work on.
    among: in training, who could be chosen.
    """

    chosen: Bool[Array, "B C"]
    count: int | None = None
    weight: Float[Array, "B C"] | None = None
    policy: bool = False
    memory: Float[Array, "B C"] | None = None
    fused: Float[Array, "B D"] | None = None
    among: Bool[Array, "B C"] | None = None

    def of_patches(self, prefix: int) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
        """``weight`` and ``among`` without class tokens: what losses are about."""
        return self.weight[:, prefix:], self.among[:, prefix:]


class Look(NamedTuple):
    """What a method sees at a cut.

    number: of the cut. carry: the tokens as they lie, after the last block or half. rows: the map,
    those who wait with their last features. inside: who does not wait. patch: what may be chosen:
    there, and no class token. heard: class attention of every head and length of the value per row,
    where the method listens; 0 for those who wait. before: weight of the last cut (training).
    key: None means inference.
    """

    number: int
    carry: Journey
    rows: Float[Array, "B C D"]
    inside: Bool[Array, "B C"]
    patch: Bool[Array, "B C"]
    heard: Float[Array, "B C h+1"] | None
    before: Float[Array, "B C"] | None
    key: Key[Array, ""] | None

    def count(self, rule: Callable[[int], int]) -> int | Int[Array, " B"]:
        """``rule`` of the tokens there are: patches, or those that share one, and what was fused.

        A number where all images have as many; else looked up image by image.
        """
        slots = self.rows.shape[1] - self.carry.layout.prefix
        if self.carry.there is None:
            return rule(slots)
        return jnp.array([rule(n) for n in range(slots + 1)])[self.patch.sum(axis=1)]

    def spread(self, per_slot: Float[Array, "*slots F"]) -> Float[Array, "B C F"]:
        """Numbers of the tokens as they lie, as rows; 0 for those who wait."""
        return spread(self.carry, per_slot)


def falling(keep: tuple[float, ...]) -> None:
    """Shares of all tokens, of which none comes back. Raises UserError: they rise."""
    if any(later > share for share, later in itertools.pairwise(keep)):
        raise UserError(
            f"config.method.keep={keep}: shares are of all tokens, and who is dropped does not "
            f"come back; give shares that do not rise"
        )


def spread(
    carry: Journey,
    per_slot: Float[Array, "*slots F"],
    waiting: Float[Array, "B C F"] | None = None,
) -> Float[Array, "B C F"]:
    """Numbers of the working buffer as rows of the map; ``waiting`` for those who are not in it."""
    if carry.slot is not None:
        if waiting is None:
            waiting = jnp.zeros((*carry.slot.shape, per_slot.shape[-1]), per_slot.dtype)
        return readout(Carry(carry.x, carry.layout, carry.grid, carry.slot, waiting), per_slot)
    if carry.layout.valid is None:
        return per_slot
    there = carry.layout.valid[..., None]
    return jnp.where(there, per_slot, jnp.zeros_like(per_slot) if waiting is None else waiting)


def of_patches(carry: Journey, rows: Float[Array, "B C F"]) -> Float[Array, "B N F"]:
    """What the map's rows say of every patch; 0 of those that have left."""
    prefix, (batch, patches) = carry.layout.prefix, carry.left.shape
    blank = jnp.zeros((batch, patches, rows.shape[-1]), rows.dtype)
    laid = Carry(rows, Rows(None, prefix), carry.grid, carry.owner, blank)
    return readout(laid, rows[:, : prefix + patches])


def rejoin(carry: Journey) -> Journey:
    """The chosen written back: ``map`` is as of now."""
    if carry.weight is None:
        return replace(carry, map=spread(carry, carry.x, carry.map))
    weight = carry.weight[..., None].astype(carry.x.dtype)
    return replace(carry, map=weight * carry.x + (1 - weight) * carry.map)


def read(carry: Journey, remove: bool) -> Float[Array, "B C D"]:
    """What heads see of the map: all of it, or zeros for those who wait."""
    if not remove or carry.inside is None:
        return carry.map
    kept = carry.inside if carry.reading is None else carry.reading
    return carry.map * kept[..., None].astype(carry.map.dtype)


def choose(carry: Journey, choice: Choice) -> Journey:
    """Book-keeping before tokens are laid out: ``x`` [B, C, D] holds what the chosen start from."""
    chosen, weight = choice.chosen, choice.weight
    if choice.fused is not None:
        x, on_map = (
            jnp.concatenate([rows, choice.fused[:, None]], axis=1) for rows in (carry.x, carry.map)
        )
        chosen, there = (
            rows if rows is None else jnp.pad(rows, ((0, 0), (0, 1)), constant_values=True)
            for rows in (chosen, carry.there)
        )
        carry = replace(carry, x=x, map=on_map, there=there)
    first = jnp.arange(chosen.shape[1]) < carry.layout.prefix
    return replace(
        carry,
        inside=chosen | first,
        weight=None if weight is None else jnp.where(first, 1.0, weight),
        reading=carry.reading if weight is None else jnp.where(first, 1.0, weight),
        memory=choice.memory,
    )


def settle(carry: Journey, plan: Plan, number: int) -> tuple[Journey, Choice]:
    """An exit: patches leave for good, and what is still there goes on as it was chosen.

    ``plan`` is about the rows that the journey began with, not about what has been fused since.
    """
    batch, prefix = len(carry.map), carry.layout.prefix
    began = len(plan.leaves) // batch
    rows = replace(carry, x=carry.map[:, :began], layout=Rows(None, prefix))
    settled = exit_(rows, plan, number)
    fused = carry.map[:, began:]
    stays = ~plan.goes.reshape(batch, began)
    stays = jnp.pad(stays, ((0, 0), (0, fused.shape[1])), constant_values=True)
    there = stays & carry.there
    kept = None if carry.reading is None else jnp.where(there, carry.reading, 0.0)
    choice = Choice(
        there & carry.inside,
        policy=isinstance(carry.layout, Rows) and carry.layout.policy is not None,
        memory=carry.memory,
    )
    x = jnp.concatenate([settled.x, fused], axis=1)
    return in_rows(replace(settled, map=x, there=there, reading=kept), x), choice


def in_rows(carry: Journey, x: Float[Array, "B C D"]) -> Journey:
    """Everything in rows again, nothing hidden: what a decision hands to an executor."""
    return replace(carry, x=x, layout=Rows(None, carry.layout.prefix), slot=None)
