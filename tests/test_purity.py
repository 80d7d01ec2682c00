"""Windows of one class: targets by counting pixel by pixel, and the rates of a policy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import purity
from jaxseg.purity import LEFT_OUT, MIXED, ONE_CLASS

CLASSES = 3


def labels_of(seed: int, shape=(2, 13, 18)) -> np.ndarray:
    """Flat areas with some other pixels and some of no class."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (shape[0], 4, 5))
    fine = np.kron(coarse, np.ones((1, 4, 4), int))[:, : shape[1], : shape[2]]
    where = rng.random(shape)
    fine = np.where(where < 0.02, rng.integers(0, CLASSES, shape), fine)
    return np.where(where > 0.98, 255, fine).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([2, 4]), st.sampled_from([1.0, 0.9]), st.booleans())
def test_targets_are_those_of_counting(seed, side, share, border):
    labels = labels_of(seed)
    counts = purity.window_counts(jnp.asarray(labels), side, CLASSES)
    targets = np.asarray(purity.window_targets(counts, share, border))
    rows, columns = (n // side for n in labels.shape[1:])
    assert targets.shape == (2, rows, columns)
    for b, row, column in np.ndindex(targets.shape):
        window = labels[b, row * side : (row + 1) * side, column * side : (column + 1) * side]
        kinds, sizes = np.unique(window, return_counts=True)
        expected = ONE_CLASS if sizes.max() >= share * window.size - 1e-9 else MIXED
        rim = row in (0, rows - 1) or column in (0, columns - 1)
        if border and rim and len(kinds) == 2 and 255 in kinds:
            expected = LEFT_OUT
        assert targets[b, row, column] == expected


def test_larger_windows_are_sums_of_smaller_ones():
    labels = jnp.asarray(labels_of(0))
    small = purity.window_counts(labels, 2, CLASSES)
    np.testing.assert_array_equal(purity.larger(small, 3), purity.window_counts(labels, 6, CLASSES))
    both = purity.targets_of(labels, (1, 3), 2, CLASSES, {1: 1.0, 3: 0.9}, False)
    alone = purity.window_targets(purity.window_counts(labels, 6, CLASSES), 0.9, False)
    np.testing.assert_array_equal(both[3], alone)


def test_padding_is_of_no_class():
    padded = np.asarray(purity.whole_patches(jnp.zeros((1, 5, 8), jnp.uint8), 4))
    assert padded.shape == (1, 8, 8)
    assert (padded[0, 5:] == 255).all() and (padded[0, :5] == 0).all()


def test_rates():
    counts = jnp.asarray([[[[8, 0], [6, 2], [5, 3], [8, 0]]]])
    target = jnp.asarray([[[ONE_CLASS, MIXED, LEFT_OUT, ONE_CLASS]]], jnp.uint8)
    accepted = jnp.asarray([[[True, True, True, False]]])
    found = purity.tally(accepted, target, counts)
    assert found == (3, 2, 2, 1, (14, 16))  # the window that is left out counts nowhere
    assert purity.rates(found) == {
        "precision": 0.5,
        "recall": 0.5,
        "share": pytest.approx(2 / 3),
        "purity": 14 / 16,
    }
    assert (found + found)[4] == (28, 32)
    nothing = purity.rates(purity.Tally(0, 0, 0, 0, (0, 0)))
    assert all(np.isnan(rate) for rate in nothing.values())


def test_positive_weight_balances():
    target = jnp.asarray([[[ONE_CLASS, MIXED, MIXED, MIXED, LEFT_OUT]]], jnp.uint8)
    assert float(purity.positive_weight(target)) == 3.0
    assert float(purity.positive_weight(jnp.zeros((1, 2, 2), jnp.uint8))) == 1.0
