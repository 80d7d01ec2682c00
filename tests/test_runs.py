"""Functions over runs of a buffer: every window length, overlaps, empty runs."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.runs import map_runs

LENGTHS = (2, 5, 6)


def centred(rows, scale, valid):
    """Rows minus their mean over the run, times the run's own number; and that mean."""
    total = jnp.where(valid[:, None], rows, 0).sum(axis=0)
    mean = total / jnp.maximum(valid.sum(), 1).astype(rows.dtype)
    return (rows - mean) * scale, mean


@jax.jit
def ours(start, count, rows, scale):
    return map_runs(centred, start, count, (rows,), (scale,), LENGTHS)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.integers(0, 3))
def test_every_run_by_itself(counts, gap):
    start = np.cumsum([0, counts[0], counts[1] + gap])
    rows = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    scale = np.array([1.0, 2.0, 3.0], np.float32)
    out, mean = ours(*map(jnp.asarray, (start, np.array(counts), rows, scale)))
    assert out.shape == rows.shape
    for i, (begin, count) in enumerate(zip(start, counts, strict=True)):
        run = rows[begin : begin + count]
        middle = run.mean(axis=0) if count else np.zeros(2)
        np.testing.assert_allclose(mean[i], middle, atol=1e-6)
        expected = (run - middle) * scale[i]
        np.testing.assert_allclose(out[begin : begin + count], expected, atol=1e-5)


def test_the_last_run_may_end_with_the_buffer():
    rows = jnp.arange(8.0)[:, None]
    start, count = jnp.array([0, 5]), jnp.array([5, 3])
    out, _ = map_runs(centred, start, count, (rows,), (jnp.ones(2),), LENGTHS)
    np.testing.assert_allclose(out[:, 0], [-2, -1, 0, 1, 2, -1, 0, 1])


def test_without_a_result_per_run():
    rows = jnp.arange(4.0)[:, None]
    out, nothing = map_runs(
        lambda x, valid: (2 * x, None), jnp.array([0]), jnp.array([4]), (rows,), (), (6,)
    )
    assert nothing is None
    np.testing.assert_array_equal(out, 2 * rows)
