"""Where the tokens of a batch lie while some of them leave, and how patches find their slot.

A *slot* is a place in the buffer that the transformer works on, a *patch* a place in the image.
Slots are laid out in one of two ways: `Rows` keeps one row per image and only marks the dead
(training, and the reference), `Packed` puts the living of all images one after another into one
buffer (inference). `Carry.owner` names, for every patch, the slot that speaks for it, or -1 once
it has left; its scores are then on the canvas.

Letters: B images, N patches per image, C slots per row, S slots in all, P slots of a packed
buffer in use, K classes, D width. ``*slots`` is "B C" in rows and "S" when packed.
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["valid", "policy"], meta_fields=["prefix"]
)
@dataclass(frozen=True)
class Rows:
    """x is [B, C, D]. ``valid`` None means that all slots live.

    The first ``prefix`` slots of an image are class tokens: attended to, never graded or dropped.
    ``policy``: what slots weigh as keys, in training with gradients (DynamicViT); else None.
    """

    valid: Bool[Array, "B C"] | None
    prefix: int
    policy: Float[Array, "B C"] | None = None

    def patches(self, x: Float[Array, "B C ..."]) -> Bool[Array, "B C"]:
        """Living slots of ``x`` that are no class token."""
        patch = jnp.broadcast_to(jnp.arange(x.shape[1]) >= self.prefix, x.shape[:2])
        return patch if self.valid is None else patch & self.valid

    def of_image(self, values: Num[Array, "B ..."], x: Float[Array, "B C g"]) -> Array:
        """[B, 1, ...]: the value of its image for every slot of ``x``, to broadcast."""
        del x
        return values[:, None]

    def total(self, x: Num[Array, "B C F"]) -> Num[Array, "B F"]:
        """The sum over the slots of each image, dead ones too."""
        return x.sum(axis=1, dtype=x.dtype)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["start", "count"],
    meta_fields=["prefix", "lengths"],
)
@dataclass(frozen=True)
class Packed:
    """x is [S, D]; image i has slots start[i] ... start[i] + count[i] - 1, in raster order.

    ``lengths`` are the static window lengths, rising, that kernels are compiled for; the last is
    at least the largest count. Slots behind the last image hold finite leftovers.
    """

    start: Int[Array, " B"]
    count: Int[Array, " B"]
    prefix: int
    lengths: tuple[int, ...]

    def image(self, slots: int) -> Int[Array, " S"]:
        """The image of every slot; slots behind the last image get that of the last."""
        return jnp.searchsorted(self.start, jnp.arange(slots), side="right") - 1

    def patches(self, x: Float[Array, "S ..."]) -> Bool[Array, " S"]:
        """Living slots of ``x`` that are no class token."""
        at = jnp.arange(len(x))
        within = at - self.start[self.image(len(x))]
        return (at < self.used) & (within >= self.prefix)

    def of_image(self, values: Num[Array, "B ..."], x: Float[Array, "S g"]) -> Array:
        """[S, ...]: the value of its image for every slot of ``x``."""
        return values[self.image(len(x))]

    def total(self, x: Num[Array, "S F"]) -> Num[Array, "B F"]:
        """The sum over the slots of each image; those behind the last count as its own."""
        total = jnp.zeros((len(self.count), x.shape[-1]), x.dtype)
        return total.at[self.image(len(x))].add(x)

    @property
    def used(self) -> Int[Array, ""]:
        """Slots in use."""
        return self.start[-1] + self.count[-1]


Layout = Rows | Packed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "layout", "owner", "canvas", "left", "window"],
    meta_fields=["grid"],
)
@dataclass(frozen=True)
class Carry:
    """A batch on its way through the network.

    owner: slot (index into all slots, flattened) that speaks for a patch, -1 once it has left;
        None while slot prefix + n of a row is patch n.
    canvas: what patches that have left keep; None before the first exit. Entries of patches that
        are still inside mean nothing.
    left: number of the exit at which a patch left, -1 while it is inside; None like ``canvas``.
    window: side of the window that a patch shares its slot with, 1 = alone; None: all are alone.
    """

    x: Float[Array, "*slots D"]
    layout: Layout
    grid: tuple[int, int]
    owner: Int[Array, "B N"] | None = None
    canvas: Float[Array, "B N K"] | None = None
    left: Int[Array, "B N"] | None = None
    window: Int[Array, "B N"] | None = None

    @property
    def alive(self) -> Int[Array, " B"]:
        """Slots of each image that the next blocks work on, class tokens included."""
        if isinstance(self.layout, Packed):
            return self.layout.count
        if self.layout.valid is None:
            return jnp.full(self.x.shape[0], self.x.shape[1], jnp.int32)
        return self.layout.valid.sum(axis=1, dtype=jnp.int32)

    def moved(self, x: Float[Array, "S D"], layout: "Packed", to: Int[Array, " S"]) -> "Carry":
        """With the slots where they now lie; ``to``: where each has gone, -1 = dropped."""
        owner = jnp.where(self.owner >= 0, to[jnp.maximum(self.owner, 0)], -1)
        return replace(self, x=x, layout=layout, owner=owner)


def readout(carry: Carry, per_slot: Float[Array, "*slots F"]) -> Float[Array, "B N F"]:
    """Every patch's value: that of its slot, or what the canvas keeps once it has left."""
    if carry.owner is None:
        return per_slot[:, carry.layout.prefix :]
    inside = per_slot.reshape(-1, per_slot.shape[-1])[jnp.maximum(carry.owner, 0)]
    if carry.canvas is None:
        return inside
    return jnp.where((carry.owner >= 0)[..., None], inside, carry.canvas.astype(inside.dtype))


def first_owner(layout: Rows, batch: int, slots: int) -> Int[Array, "B N"]:
    """`Carry.owner` written out while nobody has left."""
    return jnp.arange(batch)[:, None] * slots + jnp.arange(layout.prefix, slots)


def pack(carry: Carry, keep: Bool[Array, "*slots"], lengths: tuple[int, ...]) -> Carry:
    """Moves the slots to ``keep`` to the front of the buffer, images and raster order as before."""
    keep_flat = keep.reshape(-1)
    slots = keep_flat.size
    place = jnp.cumsum(keep_flat, dtype=jnp.int32) - 1
    order = (
        jnp.zeros(slots, jnp.int32)
        .at[jnp.where(keep_flat, place, slots)]
        .set(jnp.arange(slots, dtype=jnp.int32), mode="drop", unique_indices=True)
    )
    count = carry.layout.total(keep[..., None].astype(jnp.int32))[:, 0]
    start = jnp.cumsum(count) - count
    layout = Packed(start, count, carry.layout.prefix, lengths)
    x = carry.x.reshape(slots, -1)[order]
    return carry.moved(x, layout, jnp.where(keep_flat, place, -1))
