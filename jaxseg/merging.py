"""Square windows of patches that share one token: from accepted windows to rows of pooled patches.

A window of side s covers s x s patches and is aligned to a multiple of s; only windows that lie
inside the grid exist. Sides are powers of two, so that windows are nested (a quadtree).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Grid = tuple[int, int]


def window_map(windows: Mapping[int, Bool[Array, "B R C"]], grid: Grid) -> Int[Array, "B r c"]:
    """Side of the window that each patch is merged in, 1 where it stays alone.

    ``windows`` says per side which windows are accepted, [B, r // side, c // side]. The largest
    accepted window wins, which STEP leaves open. Raises ValueError: no sides at all.
    """
    if not windows:
        raise ValueError("no side is graded: nothing can be merged")
    batch = len(next(iter(windows.values())))
    sides = jnp.ones((batch, *grid), jnp.int32)
    for side in sorted(windows):
        sides = jnp.where(spread(windows[side], side, grid), side, sides)
    return sides


def spread(windows: Bool[Array, "B R C"], side: int, grid: Grid) -> Bool[Array, "B r c"]:
    """Each window's value on its patches; False behind the last full window."""
    filled = jnp.repeat(jnp.repeat(windows, side, axis=1), side, axis=2)
    rows, columns = filled.shape[1:]
    return jnp.pad(filled, ((0, 0), (0, grid[0] - rows), (0, grid[1] - columns)))


def speakers(sides: Int[Array, "B r c"]) -> Int[Array, "B N"]:
    """The patch (raster index) in whose slot each patch lies: the first of its window."""
    batch, rows, columns = sides.shape
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
    first = row // sides * sides * columns + column // sides * sides
    return first.reshape(batch, -1)


def token_count(sides: Int[Array, "B r c"]) -> Int[Array, " B"]:
    """Tokens that are left of each image."""
    first = speakers(sides)
    return (first == jnp.arange(first.shape[1])).sum(axis=1, dtype=jnp.int32)


def pyramid(values: Float[Array, "B r c F"], sides: Sequence[int]) -> Float[Array, "B L F"]:
    """Means over all windows: those of side 1 (the values), then of each of ``sides``, rising.

    Repeated means over 2 x 2, so that side 2 is CTS's half-size image.
    """
    batch, *_, width = values.shape
    levels, side = [values.reshape(batch, -1, width)], 1
    for wanted in sides:
        while side < wanted:
            rows, columns = (n // 2 * 2 for n in values.shape[1:3])
            values = values[:, :rows, :columns].reshape(batch, rows // 2, 2, columns // 2, 2, width)
            values, side = values.mean(axis=(2, 4)), 2 * side
        levels.append(values.reshape(batch, -1, width))
    return jnp.concatenate(levels, axis=1)


def pyramid_rows(window: Int[Array, "B r c"], sides: Sequence[int]) -> Int[Array, "B N"]:
    """The row of `pyramid` that holds each patch's window."""
    batch, rows, columns = window.shape
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
    found = jnp.broadcast_to(row * columns + column, window.shape)
    start = rows * columns
    for side in sides:
        across = columns // side
        at = start + row // side * across + column // side
        found = jnp.where(window == side, at, found)
        start += rows // side * across
    return found.reshape(batch, -1)
