"""Apply a function to every run of a packed buffer, in static shapes close to its length.

A run is rows start ... start + count - 1. XLA needs static shapes, so the function is compiled for
a few window lengths and every run takes the shortest that holds it: a loop over runs around a
`lax.switch` over lengths. Padding all runs to the longest instead would cost an image of few
tokens as much as one of many.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def map_runs(
    of_run: Callable,
    start: Int[Array, " R"],
    count: Int[Array, " R"],
    rows: tuple[Array, ...],
    extras: tuple[Array, ...],
    lengths: tuple[int, ...],
) -> tuple[Array | None, Array | None]:
    """``of_run(*rows [L, ...], *extras [...], valid bool[L]) -> (per_row [L, ...], per_run)``.

    ``start`` must rise. ``lengths`` are the window lengths L, rising; the last must hold the
    longest run. Returns per_row [S, ...] (rows in no run hold zeros or leftovers) and per_run
    [R, ...], which may be a tree; either is None where ``of_run`` gives None.

    A window longer than its run reaches into the next one: results are written in rising order, so
    that the next run overwrites what was written into it.
    """
    size, longest = len(rows[0]), lengths[-1]
    rows = tuple(_lengthen(x, longest) for x in rows)

    def branch(length, begin, n, extra):
        window = tuple(jax.lax.dynamic_slice_in_dim(x, begin, length) for x in rows)
        per_row, per_run = of_run(*window, *extra, jnp.arange(length) < n)
        return _lengthen(per_row, longest - length), per_run

    branches = [functools.partial(branch, length) for length in lengths]
    pick = jnp.searchsorted(jnp.array(lengths), count)

    def one(out, run):
        begin, n, which, extra = run
        per_row, per_run = jax.lax.switch(which, branches, begin, n, extra)
        if out is not None:
            out = jax.lax.dynamic_update_slice_in_dim(out, per_row, begin, 0)
        return out, per_run

    inputs = tuple(jax.ShapeDtypeStruct((lengths[0], *x.shape[1:]), x.dtype) for x in rows)
    valid = jax.ShapeDtypeStruct((lengths[0],), jnp.bool_)
    like, _ = jax.eval_shape(of_run, *inputs, *(x[0] for x in extras), valid)
    blank = None if like is None else jnp.zeros((size + longest, *like.shape[1:]), like.dtype)
    out, per_run = jax.lax.scan(one, blank, (start, count, pick, extras))
    return None if out is None else out[:size], per_run


def _lengthen(x: Array | None, by: int) -> Array | None:
    return None if x is None else jnp.pad(x, ((0, by), *((0, 0),) * (x.ndim - 1)))
