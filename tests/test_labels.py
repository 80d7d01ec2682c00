"""Labels by blocks equal the argmax of a full interpolation, done here with dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.labels import BLOCK, CHUNK, axis, label_map, mixed_blocks
from jaxseg.resize import bilinear_matrix

labels_of = jax.jit(label_map)
mixed_of = jax.jit(mixed_blocks)


def dense(scores, *chains):
    """Scores [B, H, W, K] of every output: each step of each chain over the whole map, float64."""
    scores = np.asarray(scores, np.float64)
    for dimension, chain in zip((1, 2), chains, strict=True):
        for resized, kept in chain:
            matrix = bilinear_matrix(scores.shape[dimension], resized)[:kept]
            scores = np.moveaxis(np.tensordot(matrix, scores, (1, dimension)), 0, dimension)
    return scores


def labels(scores, rows, columns):
    axes = axis(scores.shape[1], rows), axis(scores.shape[2], columns)
    return np.asarray(labels_of(scores, *axes))[:, : rows[-1][1], : columns[-1][1]]


def assert_exact(found, scores, rows, columns):
    """The labels of the full interpolation wherever its best two scores are not within rounding."""
    full = dense(scores, rows, columns)
    best = np.sort(full, axis=-1)
    clear = np.ones(full.shape[:-1], bool)
    if full.shape[-1] > 1:
        clear = best[..., -1] - best[..., -2] > 1e-6
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(found[clear], full.argmax(axis=-1)[clear])


def mixed(scores, rows, columns):
    return mixed_of(scores, axis(scores.shape[1], rows), axis(scores.shape[2], columns))


def one_hot(classes, count):
    return np.eye(count, dtype=np.float32)[classes]


def checkerboard(batch, rows, columns):
    squares = np.indices((rows, columns)).sum(axis=0) % 2
    return one_hot(np.broadcast_to(squares, (batch, rows, columns)), 3)


@st.composite
def chains(draw, n_in):
    """One or two steps, up or down, each with or without a cut."""
    steps = []
    for _ in range(draw(st.integers(1, 2))):
        resized = draw(st.integers(1, 12 * n_in))
        steps.append((resized, draw(st.integers(max(1, resized - 9), resized))))
    return tuple(steps)


@st.composite
def cases(draw):
    batch, rows, columns = (draw(st.integers(1, most)) for most in (3, 7, 7))
    classes = draw(st.sampled_from((1, 2, 7, 8, 9, 17)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    scores = random.random((batch, rows, columns, classes), np.float32)
    # Between many pure blocks and none.
    scores[..., 0] += draw(st.sampled_from((0.0, 0.2, 0.5)))
    return scores, draw(chains(rows)), draw(chains(columns))


@settings(max_examples=15, deadline=None)
@given(cases())
def test_equals_full_interpolation_and_argmax(case):
    found = labels(*case)
    assert found.dtype == np.uint8
    assert_exact(found, *case)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), chains(n))))
def test_axis_is_the_composed_matrix(drawn):
    n_in, steps = drawn
    first, weights = axis(n_in, steps)
    blocks, _, support = weights.shape
    assert blocks == -(-steps[-1][1] // BLOCK) and first.shape == (blocks,)
    assert (first.dtype, weights.dtype) == (np.int32, np.float32)
    assert first.min() >= 0 and first.max() + support <= n_in
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-6)
    assert (weights >= 0).all()
    matrix = np.zeros((blocks, BLOCK, n_in))
    for b in range(blocks):
        matrix[b, :, first[b] : first[b] + support] = weights[b]
    composed = np.eye(n_in)
    for resized, kept in steps:
        composed = (bilinear_matrix(len(composed), resized) @ composed)[:kept]
    composed = np.pad(composed, ((0, -len(composed) % BLOCK), (0, 0)), mode="edge")
    np.testing.assert_allclose(matrix.reshape(-1, n_in), composed, rtol=0, atol=1e-6)


def test_axis_reads_two_tokens_at_patch_16_and_is_safe_to_cache():
    first, weights = axis(32, ((512, 512),))
    assert weights.shape == (64, BLOCK, 2)
    with pytest.raises(ValueError):
        weights[0] = 2
    with pytest.raises(ValueError):
        first[0] = 2
    with pytest.raises(ValueError, match="at most 16"):
        axis(2, ((16, 17),))


def test_constant_map_has_no_mixed_block():
    scores = one_hot(np.full((2, 4, 5), 6), 9)
    chain = ((64, 60),)
    assert mixed(scores, chain, chain).tolist() == [0, 0]
    assert (labels(scores, chain, chain) == 6).all()


def test_only_blocks_that_read_both_classes_are_mixed():
    """Four tokens, the first differs: two of the eight blocks read it and its neighbour."""
    scores = one_hot(np.stack([np.zeros((1, 4), int), [[1, 0, 0, 0]]]), 2)
    assert mixed(scores, ((8, 8),), ((64, 64),)).tolist() == [0, 2]


@pytest.mark.parametrize("batch, rows", [(1, 1), (1, CHUNK // 8), (2, CHUNK // 8), (1, 19)])
def test_checkerboard_is_all_mixed(batch, rows):
    """At 8 pixels per token all blocks read neighbours: less than a chunk, one, two, and 1.2."""
    scores, chain = checkerboard(batch, rows, 8), (((rows * 8,) * 2,), ((64, 64),))
    assert mixed(scores, *chain).tolist() == [rows * 8] * batch
    assert_exact(labels(scores, *chain), scores, *chain)


def test_equal_scores_give_the_lowest_class():
    scores = np.random.default_rng(0).random((1, 5, 5, 11), np.float32)
    chain = ((80, 77),)
    once = labels(scores, chain, chain)
    twice = labels(np.concatenate([scores, scores], axis=-1), chain, chain)
    np.testing.assert_array_equal(twice, once)
    assert (labels(np.zeros_like(scores), chain, chain) == 0).all()


def test_a_third_class_may_win_between_two_tokens():
    scores = np.asarray([[[[1.0, 0.0, 0.9], [0.0, 1.0, 0.9]]]], np.float32)
    assert set(np.unique(labels(scores, ((8, 8),), ((32, 32),)))) == {0, 1, 2}


def test_low_precision_scores_are_interpolated_in_float32():
    scores = jnp.asarray(np.random.default_rng(0).random((1, 4, 4, 5)), jnp.bfloat16)
    chain = ((64, 64),)
    wide = labels(scores.astype(jnp.float32), chain, chain)
    np.testing.assert_array_equal(labels(scores, chain, chain), wide)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_scores_that_are_no_numbers_give_some_class(bad):
    scores = np.random.default_rng(0).random((1, 4, 4, 9), np.float32)
    scores[0, 1, 2, 3] = scores[0, 3, 3] = bad
    chain = ((64, 64),)
    found = labels(scores, chain, chain)
    assert found.max() < 9
    # Pixels that read no such token are as they were.
    scores[~np.isfinite(scores)] = 0
    np.testing.assert_array_equal(found[:, :, :24], labels(scores, chain, chain)[:, :, :24])


def test_axes_are_data():
    """Two axes of one shape share a trace; as constants they give the same labels."""
    traces, scores = [], np.random.default_rng(0).random((1, 6, 6, 4), np.float32)

    @jax.jit
    def run(scores, rows, columns):
        traces.append(1)
        return label_map(scores, rows, columns)

    for chain in (((93, 90),), ((92, 92), (95, 91))):
        along = axis(6, chain)
        found = run(scores, along, along)
        constant = jax.jit(lambda scores, along=along: label_map(scores, along, along))(scores)
        np.testing.assert_array_equal(found, constant)
        size = chain[-1][1]
        assert_exact(np.asarray(found)[:, :size, :size], scores, chain, chain)
    assert len(traces) == 1
