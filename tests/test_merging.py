"""Windows that share a token: the book-keeping, and what the methods accept."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import merging
from jaxseg.errors import UserError
from jaxseg.methods.cts import Share
from jaxseg.methods.dcts import Merge

SIDES = (2, 4, 8)
# Too small for any window, for some, cut by the largest; few, for each is compiled.
GRIDS = st.sampled_from([(1, 1), (2, 3), (1, 9), (8, 8), (11, 6), (9, 17)])


def drawn(grid, seed, rate=0.5, sides=SIDES) -> dict:
    rng = np.random.default_rng(seed)
    return {s: jnp.asarray(rng.random((2, grid[0] // s, grid[1] // s)) < rate) for s in sides}


@settings(max_examples=15, deadline=None)
@given(GRIDS, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_every_patch_has_one_speaker_and_the_largest_window_wins(grid, seed, rate):
    windows = drawn(grid, seed, rate)
    sides = np.asarray(merging.window_map(windows, grid))
    first = np.asarray(merging.speakers(jnp.asarray(sides))).reshape(sides.shape)
    for b, row, column in np.ndindex(sides.shape):
        accepted = [
            s
            for s in SIDES
            if row // s < grid[0] // s
            and column // s < grid[1] // s
            and windows[s][b, row // s, column // s]
        ]
        side = max(accepted, default=1)
        assert sides[b, row, column] == side
        assert first[b, row, column] == row // side * side * grid[1] + column // side * side
    speaking = [len(np.unique(each)) for each in first]
    np.testing.assert_array_equal(merging.token_count(jnp.asarray(sides)), speaking)


@settings(max_examples=15, deadline=None)
@given(GRIDS, st.integers(0, 99))
def test_the_row_of_a_patch_holds_the_mean_of_its_window(grid, seed):
    windows = drawn(grid, seed)
    sides = merging.window_map(windows, grid)
    values = np.random.default_rng(seed).standard_normal((2, *grid, 3), np.float32)
    rows = np.asarray(merging.pyramid_rows(sides, SIDES)).reshape(2, *grid)
    pooled = np.asarray(merging.pyramid(jnp.asarray(values), SIDES))
    for b, row, column in np.ndindex(2, *grid):
        side = int(sides[b, row, column])
        top, left = row // side * side, column // side * side
        mean = values[b, top : top + side, left : left + side].mean(axis=(0, 1))
        np.testing.assert_allclose(pooled[b, rows[b, row, column]], mean, atol=1e-5)


def test_cts_merges_the_k_best_windows_whatever_they_score():
    score = jnp.asarray([[[0.1, 0.9, 0.5], [0.5, 0.2, 0.5]]])
    assert Share(0).sides == () and Share(0)({}, (4, 6)) == {}
    for k, expected in ((1, 1), (3, 3), (99, 6)):
        found = np.asarray(Share(k)({2: score}, (4, 6))[2])
        assert found.sum() == expected
    chosen = np.asarray(Share(3)({2: score}, (4, 6))[2])[0]
    np.testing.assert_array_equal(chosen, [[0, 1, 1], [1, 0, 0]])  # the first of equals
    assert int(merging.token_count(merging.window_map({2: chosen[None]}, (4, 6)))[0]) == 24 - 9


def scores_of(seed, grid, sides=SIDES) -> dict:
    rng = np.random.default_rng(seed)
    return {s: jnp.asarray(rng.random((2, grid[0] // s, grid[1] // s), np.float32)) for s in sides}


def test_dcts_accepts_at_the_threshold_and_can_be_switched_off():
    score = {2: jnp.asarray([[[0.5, 0.4999]]]), 4: jnp.zeros((1, 0, 1))}
    found = Merge(((2, 0.5), (4, 2.0)))(score, (2, 4))
    assert list(found) == [2]
    np.testing.assert_array_equal(found[2][0], [[True, False]])
    assert Merge(((2, 2.0), (4, 1.0))).sides == (4,)


def test_the_guard_asks_all_smaller_windows():
    small = jnp.ones((1, 4, 4)).at[0, 3, 3].set(0.0)
    score = {2: small, 4: jnp.ones((1, 2, 2)), 8: jnp.ones((1, 1, 1))}
    tau = ((2, 0.5), (4, 0.5), (8, 0.5))
    free = Merge(tau)(score, (8, 8))
    assert bool(free[8].all()) and bool(free[4].all())
    guarded = Merge(tau, guard=True)(score, (8, 8))
    np.testing.assert_array_equal(guarded[4][0], [[True, True], [True, False]])
    assert not guarded[8].any()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.integers(30, 100))
def test_a_budget_is_kept_and_nearly_used_up(seed, budget):
    grid = (10, 11)
    decide = Merge(((2, 0.6), (4, 0.8), (8, 0.9)), budget=budget)
    scores = scores_of(seed, grid)
    count = np.asarray(merging.token_count(merging.window_map(decide(scores, grid), grid)))
    assert (count <= budget).all()
    # One window more would not have been needed: at the next lower margin more are left.
    margins = {s: np.asarray(scores[s]) - t for s, t in decide.tau}
    for b in range(2):
        inside = sorted({float(m) for margin in margins.values() for m in margin[b].ravel()})
        counts = []
        for shift in inside + [9.0]:
            windows = {s: jnp.asarray(m[b : b + 1] >= shift) for s, m in margins.items()}
            counts.append(int(merging.token_count(merging.window_map(windows, grid))[0]))
        best = max((c for c in counts if c <= budget), default=min(counts))
        assert count[b] == best


def test_one_side_with_the_k_th_score_as_threshold_is_cts():
    scores = scores_of(3, (8, 10), (2,))
    flat = np.sort(np.asarray(scores[2]).reshape(2, -1))[:, ::-1]
    for b in range(2):
        by_k = Share(7)(scores, (8, 10))[2][b]
        by_tau = Merge(((2, float(flat[b, 6])),))(scores, (8, 10))[2][b]
        np.testing.assert_array_equal(by_k, by_tau)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Share(-1), "windows=-1"),
        (lambda: Merge(((2, -0.1),)), "tau2=-0.1"),
        (lambda: Merge(((2, 0.5),), budget=-1), "budget=-1"),
    ],
)
def test_impossible_merges_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
