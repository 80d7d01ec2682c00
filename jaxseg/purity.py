"""Which windows of a label map show one class: what a merging policy learns, and is judged by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxseg.losses import IGNORE

MIXED, ONE_CLASS, LEFT_OUT = 0, 1, 255  # of `window_targets`


def window_counts(
    labels: UInt8[Array, "B H W"], side: int, classes: int
) -> Int[Array, "B R C K+1"]:
    """Pixels of each class, and of none (last), in every full window of ``side`` pixels."""
    batch, rows, columns = len(labels), *(n // side for n in labels.shape[1:])
    inside = labels[:, : rows * side, : columns * side].astype(jnp.int32)
    kind = jnp.where(inside < classes, inside, classes)
    row, column = jnp.arange(rows * side)[:, None] // side, jnp.arange(columns * side) // side
    window = (jnp.arange(batch)[:, None, None] * rows + row) * columns + column
    flat = jnp.zeros(batch * rows * columns * (classes + 1), jnp.int32)
    flat = flat.at[window * (classes + 1) + kind].add(1)
    return flat.reshape(batch, rows, columns, classes + 1)


def larger(counts: Int[Array, "B R C K"], factor: int) -> Int[Array, "B R2 C2 K"]:
    """Counts of windows ``factor`` times as long; those that are not full do not exist."""
    batch, rows, columns, kinds = counts.shape
    rows, columns = rows // factor, columns // factor
    inside = counts[:, : rows * factor, : columns * factor]
    return inside.reshape(batch, rows, factor, columns, factor, kinds).sum(axis=(2, 4))


def window_targets(
    counts: Int[Array, "B R C K"], purity: float, border: bool
) -> UInt8[Array, "B R C"]:
    """ONE_CLASS, MIXED or LEFT_OUT per window, from `window_counts`.

    Pixels of no class count as a class of their own: a window that shows nothing else is of one
    class, one that also shows a class is not (CTS's released data code). ``purity``: the share of
    pixels that the largest class must have, 1 in CTS. ``border``: windows on the rim of the grid
    that show one class and pixels of none are left out (CTS, for ADE20K alone).
    """
    total = counts.sum(axis=-1)
    # In whole pixels: 0.98 of 16384 is no float32 comparison to trust.
    needed = jnp.ceil(total.astype(jnp.float32) * purity - 1e-3).astype(total.dtype)
    target = jnp.where(counts.max(axis=-1) >= needed, ONE_CLASS, MIXED)
    if border:
        rows, columns = target.shape[1:]
        row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
        rim = (row == 0) | (row == rows - 1) | (column == 0) | (column == columns - 1)
        half = ((counts[..., :-1] > 0).sum(axis=-1) == 1) & (counts[..., -1] > 0)
        target = jnp.where(rim & half, LEFT_OUT, target)
    return target.astype(jnp.uint8)


def targets_of(
    labels: UInt8[Array, "B H W"],
    sides: Sequence[int],
    patch: int,
    classes: int,
    purity: Mapping[int, float],
    border: bool,
) -> dict[int, UInt8[Array, "B R C"]]:
    """`window_targets` for windows of each of ``sides`` patches."""
    smallest = min(sides)
    counts = window_counts(labels, smallest * patch, classes)
    return {
        side: window_targets(larger(counts, side // smallest), purity[side], border)
        for side in sides
    }


def whole_patches(labels: UInt8[Array, "B h w"], patch: int) -> UInt8[Array, "B H W"]:
    """Labels of the padded image: what padding adds is of no class."""
    height, width = (-n % patch for n in labels.shape[1:])
    return jnp.pad(labels, ((0, 0), (0, height), (0, width)), constant_values=IGNORE)


class Tally(NamedTuple):
    """What a policy did with the windows of one side, summed over a set.

    windows: all that were graded. pure: that are of one class. merged: that the policy merges.
    right: merged and of one class. pixels: of the merged windows, those of their largest class and
    all of them.
    """

    windows: int
    pure: int
    merged: int
    right: int
    pixels: tuple[int, int]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            *(a + b for a, b in zip(self[:4], other[:4], strict=True)),
            (self.pixels[0] + other.pixels[0], self.pixels[1] + other.pixels[1]),
        )


def tally(
    accepted: Bool[Array, "B R C"], target: UInt8[Array, "B R C"], counts: Int[Array, "B R C K"]
) -> Tally:
    """Windows that are left out are not counted."""
    graded = target != LEFT_OUT
    merged, pure = accepted & graded, (target == ONE_CLASS) & graded
    largest, total = counts.max(axis=-1), counts.sum(axis=-1)
    return Tally(
        int(graded.sum()),
        int(pure.sum()),
        int(merged.sum()),
        int((merged & pure).sum()),
        tuple(int(jnp.where(merged, count, 0).sum()) for count in (largest, total)),
    )


def rates(found: Tally) -> dict[str, float]:
    """precision, recall, share of windows merged, purity of their pixels; NaN where empty."""

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return {
        "precision": ratio(found.right, found.merged),
        "recall": ratio(found.right, found.pure),
        "share": ratio(found.merged, found.windows),
        "purity": ratio(*found.pixels),
    }


def positive_weight(
    target: UInt8[Array, "B R C"], batch_axis: str | None = None
) -> Float[Array, ""]:
    """Mixed windows per pure one: balances the two kinds; 1 where either is missing.

    Counted over all devices along ``batch_axis``.
    """
    pure, mixed = (target == ONE_CLASS).sum(), (target == MIXED).sum()
    if batch_axis is not None:
        pure, mixed = (jax.lax.psum(count, batch_axis) for count in (pure, mixed))
    both = (pure > 0) & (mixed > 0)
    share = mixed.astype(jnp.float32) / jnp.maximum(pure, 1).astype(jnp.float32)
    return jnp.where(both, share, 1.0)
