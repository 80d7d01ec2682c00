"""Selection against slow loops, ties included."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.selection import above_threshold, best_class, best_of_group, top_share

GROUPS = 4
FEW = settings(max_examples=60, deadline=None)
# Few distinct scores, so that ties are common, and few lengths, each of which is compiled.
SLOT = st.tuples(st.integers(0, 3), st.integers(0, GROUPS - 1), st.booleans())
SLOTS = st.sampled_from([1, 2, 7, 20]).flatmap(lambda n: st.lists(SLOT, min_size=n, max_size=n))


def columns(slots):
    score, group, candidate = zip(*slots, strict=True)
    return np.array(score, np.float32) / 4, np.array(group), np.array(candidate)


def ranked(score, group, candidate, g):
    """Candidates of group g, best first; of equals the first."""
    mine = [i for i in range(len(score)) if candidate[i] and group[i] == g]
    return sorted(mine, key=lambda i: (-score[i], i))


@FEW
@given(SLOTS, st.integers(1, 6))
def test_best_of_group(slots, count):
    score, group, candidate = columns(slots)
    ours = best_of_group(*map(jnp.asarray, (score, group, candidate)), GROUPS, count)
    expected = np.zeros(len(score), bool)
    for g in range(GROUPS):
        expected[ranked(score, group, candidate, g)[:count]] = True
    np.testing.assert_array_equal(ours, expected)


@FEW
@given(SLOTS, st.sampled_from([0.1, 0.35, 0.5, 0.99]))
def test_top_share(slots, share):
    score, group, candidate = columns(slots)
    ours = top_share(*map(jnp.asarray, (score, group, candidate)), GROUPS, share)
    expected = np.zeros(len(score), bool)
    for g in range(GROUPS):
        mine = ranked(score, group, candidate, g)
        expected[mine[: int(np.float32(len(mine)) * np.float32(share))]] = True
    np.testing.assert_array_equal(ours, expected)


def test_threshold_is_strict_and_nan_is_not_above():
    score = jnp.array([0.4, 0.5, 0.6, jnp.nan])
    assert above_threshold(score, 0.5).tolist() == [False, False, True, False]


def test_a_score_that_is_nan_chooses_nobody_in_its_group():
    score = jnp.array([jnp.nan, 0.1, 0.2, 0.3])
    group = jnp.array([0, 0, 1, 1])
    chosen = best_of_group(score, group, jnp.ones(4, bool), 2)
    assert chosen.tolist() == [False, False, False, True]


def test_best_class_is_the_first_of_equals():
    scores = np.random.default_rng(0).integers(0, 4, (3, 7, 5)).astype(np.float32)
    top, label = best_class(jnp.asarray(scores))
    np.testing.assert_array_equal(top, scores.max(-1))
    np.testing.assert_array_equal(label, scores.argmax(-1))
    assert best_class(jnp.full((1, 3), jnp.nan))[1].tolist() == [2]
