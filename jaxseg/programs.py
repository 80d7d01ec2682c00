"""Compiled programs that answer for a batch: what prediction, benchmarks and the export call.

Both kinds are called with (arrays, images float32[B, H, W, 3]) and return `jaxseg.execute.Answer`.
They compile when they first meet a shape; `warmup` does that ahead.
"""

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.execute import Answer, Masked, Packing, answer, maps_of, step, within
from jaxseg.tokens import Carry

Arrays = dict[str, jax.Array]
_MOST = 0.6  # one more image may compile a dozen programs before there is room again


@dataclass(frozen=True)
class OneProgram:
    """Everything in one program: dense models, `Masked`, and `Packing` with its `lax.switch`.

    bind: arrays -> model (see `jaxseg.execute`). patch: pixels per side of a token.
    prepare: arrays as they are stored -> as they are computed with.
    """

    bind: Callable[[Arrays], object]
    executor: Masked | Packing
    patch: int
    prepare: Callable[[Arrays], Arrays] = jax.device_put

    def __call__(self, arrays: Arrays, images: jax.Array) -> Answer:
        return self._run(arrays, images)

    def warmup(self, arrays: Arrays, shape: tuple[int, int, int, int]) -> int:
        """Compiles for images of ``shape``; returns the number of programs."""
        self(arrays, np.zeros(shape, np.float32)).scores.block_until_ready()
        return 1

    @property
    def compiled(self) -> int:
        """Programs compiled so far."""
        return self._run._cache_size()

    @functools.cached_property
    def _run(self):
        return jax.jit(lambda arrays, images: answer(self.bind(arrays), images, self.executor))


@dataclass(frozen=True)
class Chain:
    """One program per (stage, capacity); the host picks the capacity of the next stage.

    For that it reads the token counts of the images, a few integers per exit. ``stages`` is that
    of the model. ``merges``: patches share tokens from the start, so that the first stage is
    packed already. ``grows``: stages add tokens, so that their buffers cannot be used again. See
    `OneProgram` for the rest.
    """

    bind: Callable[[Arrays], object]
    executor: Packing
    patch: int
    stages: int
    merges: bool = False
    grows: bool = False
    prepare: Callable[[Arrays], Arrays] = jax.device_put

    def __call__(self, arrays: Arrays, images: jax.Array) -> Answer:
        carry = self._first(arrays, images)
        slots = len(carry.x)
        alive = [] if self.merges else [np.full(len(images), _slots_at_first(carry))]
        alive.append(np.asarray(carry.alive))
        for number in self._packed_exits:
            capacity = self._capacity(slots, alive[-1])
            carry = self._middle(arrays, carry, number, capacity)
            slots = len(carry.x)  # more, where tokens have been fused
            alive.append(np.asarray(carry.alive))
        scores, *maps = self._last(arrays, carry, self._capacity(slots, alive[-1]))
        return Answer(scores, np.stack(alive, axis=1), *maps)

    def warmup(self, arrays: Arrays, shape: tuple[int, int, int, int]) -> int:
        """Compiles every (stage, capacity) for images of ``shape``; returns how many."""
        carry, count = self._first(arrays, np.zeros(shape, np.float32)), 1
        for number in self._packed_exits:
            for capacity in self.executor.capacities(len(carry.x)):
                after, count = self._middle(arrays, _copy(carry), number, capacity), count + 1
            carry = after
        for capacity in self.executor.capacities(len(carry.x)):
            scores, *_ = self._last(arrays, carry, capacity)
            scores.block_until_ready()
            count += 1
        return count

    @property
    def compiled(self) -> int:
        """Programs compiled so far."""
        programs = (self._first, self._middle, self._last)
        return sum(program._cache_size() for program in programs)

    @property
    def _packed_exits(self) -> range:
        """The stages that end in an exit and begin packed."""
        return range(0 if self.merges else 1, self.stages - 1)

    def _capacity(self, slots: int, alive: np.ndarray) -> int:
        return next(c for c in self.executor.capacities(slots) if c >= alive.sum())

    @functools.cached_property
    def _first(self):
        def first(arrays, images):
            model = self.bind(arrays)
            carry = self.executor.compact(model.begin(images))
            return carry if self.merges else step(model, self.executor, 0, carry)

        return jax.jit(first)

    @functools.cached_property
    def _middle(self):
        def middle(arrays, carry, number, capacity):
            stage = functools.partial(step, self.bind(arrays), self.executor, number)
            return within(stage, capacity, carry)

        return jax.jit(middle, static_argnums=(2, 3), donate_argnums=() if self.grows else 1)

    @functools.cached_property
    def _last(self):
        def last(arrays, carry, capacity):
            return within(self.bind(arrays).finish, capacity, carry), *maps_of(carry)

        return jax.jit(last, static_argnums=2)


def _slots_at_first(carry: Carry) -> int:
    """Of each image, class token included, before anybody left or skipped."""
    return carry.left.shape[1] + carry.layout.prefix


def _copy(carry: Carry) -> Carry:
    return jax.tree.map(jnp.copy, carry)


Program = OneProgram | Chain


def make_room(limit: int | None = None) -> bool:
    """Forgets all compiled programs of this process once they take most of its memory mappings.

    Each takes tens to hundreds, and where Linux's ``limit`` for a process is reached (None: as the
    machine has it, usually 65,530) XLA fails. What is needed again comes from the compilation
    cache on disk. Returns whether they were forgotten.
    """
    try:
        used = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
        limit = limit or int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:  # no Linux, no such limit
        return False
    if used < _MOST * limit:
        return False
    jax.clear_caches()
    return True
