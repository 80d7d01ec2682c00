"""How the tokens lie in memory while a network runs, and nothing else.

`Masked` keeps every slot and hides the dead from attention: for training, and as the reference
that every test compares with. `Packing` squeezes the living into the front of one buffer and works
on the smallest static *capacity* that holds them: for inference. A network is a chain of stages
(blocks, a head, a decision); the host picks the capacity of each stage from the token counts that
the stage before has returned, or a `lax.switch` picks it inside one program.

The model is whatever offers ``stages`` (how many), ``begin(images) -> Carry``,
``decide(carry, stage) -> (Carry, Plan)`` and ``finish(carry) -> scores``
(`jaxseg.models.segmenter`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.bypass import Choice, Journey, choose
from jaxseg.fates import Plan, exit_
from jaxseg.tokens import Carry, Packed, Rows, pack


class Answer(NamedTuple):
    """What a network says about a batch.

    scores: on the token grid; bilinear interpolation makes them those of pixels.
    alive: slots that each stage worked on, class tokens included.
    left: number of the exit at which each patch left, -1 if at none.
    window: side of the window, in patches, that a patch shared its token with; 1 = alone.
    """

    scores: Float[Array, "B r c K"]
    alive: Int[Array, "B stages"]
    left: Int[Array, "B r c"]
    window: Int[Array, "B r c"]


@dataclass(frozen=True)
class Masked:
    """All slots stay where they are."""

    def compact(self, carry: Carry) -> Carry:
        return carry

    def lay_out(self, carry: Carry, plan: Plan) -> Carry:
        batch, slots = carry.x.shape[:2]
        goes = plan.goes.reshape(batch, slots)
        valid = carry.layout.valid
        return replace(
            carry, layout=replace(carry.layout, valid=~goes if valid is None else valid & ~goes)
        )

    def pick(self, carry: Journey, choice: Choice) -> Journey:
        """``carry`` in rows; all of them are worked on, and the chosen written back."""
        carry = choose(carry, choice)
        policy = carry.reading if choice.policy else None
        return replace(carry, layout=Rows(carry.inside, carry.layout.prefix, policy))

    def run(self, stage: Callable[[Carry], object], carry: Carry):
        return stage(carry)


@dataclass(frozen=True)
class Packing:
    """Survivors at the front of one buffer.

    steps: capacities up to its full size, each compiled when it is first met: the mean waste is
        half a step. windows: lengths that kernels over single images are compiled for, in each.
    """

    steps: int = 32
    windows: int = 16

    def capacities(self, slots: int) -> tuple[int, ...]:
        """Static buffer sizes, rising; the last is ``slots``."""
        return _equal_steps(slots, self.steps)

    def lay_out(self, carry: Carry, plan: Plan) -> Carry:
        batch, patches = carry.owner.shape
        slots = patches + carry.layout.prefix
        keep = ~plan.goes.reshape(carry.x.shape[:-1])
        if isinstance(carry.layout, Packed):
            keep &= jnp.arange(keep.size) < carry.layout.used
        return pack(carry, keep, self._lengths(batch, slots))

    def compact(self, carry: Carry) -> Carry:
        """Packs slots of which some are dead from the start, as where patches share a token."""
        if carry.layout.valid is None:
            return carry
        return pack(carry, carry.layout.valid, self._lengths(*carry.layout.valid.shape))

    def _lengths(self, batch: int, slots: int) -> tuple[int, ...]:
        # One image fills its buffer, so that its capacity is window length enough.
        return (slots,) if batch == 1 else _equal_steps(slots, self.windows)

    def pick(self, carry: Journey, choice: Choice) -> Journey:
        """``carry`` in rows. As many of each image: in shorter rows, else in one buffer."""
        prefix = carry.layout.prefix
        carry = choose(carry, choice)
        batch, slots = carry.x.shape[:2]
        packed = pack(carry, carry.inside, self._lengths(batch, slots))
        if choice.count is None:
            return packed
        count = prefix + choice.count + (choice.fused is not None)
        x = packed.x[: batch * count].reshape(batch, count, -1)
        return replace(packed, x=x, layout=Rows(None, prefix))

    def run(self, stage: Callable[[Carry], object], carry: Carry):
        """``stage`` at the capacity that a `lax.switch` picks."""
        if isinstance(carry.layout, Rows):
            return stage(carry)
        capacities = self.capacities(len(carry.x))
        pick = jnp.searchsorted(jnp.array(capacities), carry.layout.used)
        branches = [functools.partial(within, stage, capacity) for capacity in capacities]
        return jax.lax.switch(pick, branches, carry)


def _equal_steps(slots: int, count: int) -> tuple[int, ...]:
    """Up to ``count`` sizes in equal steps of a multiple of 8; the last is ``slots``."""
    step = -(-slots // (8 * count)) * 8
    return (*range(step, slots, step), slots)


def within(stage: Callable[[Carry], object], capacity: int, carry: Carry):
    """``stage`` on the first ``capacity`` slots; a carry it returns has the full size again."""
    lengths = carry.layout.lengths
    short = (*(n for n in lengths if n < capacity), min(capacity, lengths[-1]))
    after = stage(replace(carry, x=carry.x[:capacity], layout=replace(carry.layout, lengths=short)))
    if not isinstance(after, Carry) or len(after.x) >= len(carry.x):
        return after
    # Written over the old buffer: nothing behind the capacity is read again.
    return replace(after, x=jax.lax.dynamic_update_slice_in_dim(carry.x, after.x, 0, 0))


def leave(executor: Masked | Packing, carry: Carry, plan: Plan | Choice, number: int) -> Carry:
    """Carries out the decision of stage ``number``: settle, then lay out."""
    if isinstance(plan, Choice):
        return executor.pick(carry, plan)
    return executor.lay_out(exit_(carry, plan, number), plan)


def step(model, executor: Masked | Packing, number: int, carry: Carry) -> Carry:
    """One stage that ends in an exit."""
    carry, plan = model.decide(carry, number)
    return leave(executor, carry, plan, number)


def answer(model, images: Float[Array, "B H W 3"], executor: Masked | Packing) -> Answer:
    """All stages in one program."""
    carry = executor.compact(model.begin(images))
    alive = [carry.alive]
    for number in range(model.stages - 1):
        carry = executor.run(functools.partial(step, model, executor, number), carry)
        alive.append(carry.alive)
    scores = executor.run(model.finish, carry)
    return Answer(scores, jnp.stack(alive, axis=1), *maps_of(carry))


def maps_of(carry: Carry) -> tuple[Int[Array, "B r c"], Int[Array, "B r c"]]:
    """`Carry.left` and `Carry.window` on the grid."""

    def on_grid(values: Int[Array, "B N"] | None, otherwise: int) -> Int[Array, "B r c"]:
        if values is None:
            return jnp.full((len(carry.alive), *carry.grid), otherwise, jnp.int32)
        return values.reshape(-1, *carry.grid)

    return on_grid(carry.left, -1), on_grid(carry.window, 1)
