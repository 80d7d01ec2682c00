"""DToP's decisions against a slow loop over images and classes (facts of the released code)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.errors import UserError
from jaxseg.fates import Grades
from jaxseg.methods.dtop import Exit
from jaxseg.tools.forced import forced

IMAGES, CLASSES = 2, 3
SLOT = st.tuples(st.integers(0, 9), st.integers(0, CLASSES - 1), st.booleans())
SLOTS = st.sampled_from([2, 3, 9, 24]).flatmap(  # few lengths, each of which is compiled
    lambda n: st.lists(SLOT, min_size=n, max_size=n)
)


def grades_of(slots) -> Grades:
    confidence, label, graded = (np.array(c) for c in zip(*slots, strict=True))
    image = np.sort(np.arange(len(slots)) % IMAGES)
    confidence = confidence.astype(np.float32) / 10
    arrays = map(jnp.asarray, (confidence, label, image, graded))
    return Grades(*arrays, images=IMAGES, classes=CLASSES)


def groups_of(grades: Grades, easy: np.ndarray):
    """Easy slots of each (image, class), best first, of equals the first."""
    confidence = np.asarray(grades.confidence)
    for image in range(IMAGES):
        for label in range(CLASSES):
            same = (np.asarray(grades.image) == image) & (np.asarray(grades.label) == label)
            yield sorted(np.flatnonzero(easy & same), key=lambda i: (-confidence[i], i))


def easy_of(grades: Grades, threshold: float) -> np.ndarray:
    return np.asarray(grades.graded) & (np.asarray(grades.confidence) > np.float32(threshold))


@settings(max_examples=50, deadline=None)
@given(SLOTS, st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.integers(1, 4))
def test_the_best_of_each_class_stay(slots, threshold, k):
    grades = grades_of(slots)
    plan = Exit(threshold, k=k)(grades)
    easy = easy_of(grades, threshold)
    expected = easy.copy()
    for best_first in groups_of(grades, easy):
        expected[best_first[:k]] = False
    np.testing.assert_array_equal(plan.leaves, expected)
    assert plan.context is None and plan.target is None


@settings(max_examples=30, deadline=None)
@given(SLOTS, st.sampled_from(["average", "average_top_k"]))
def test_the_others_become_one_token_per_class(slots, context):
    grades = grades_of(slots)
    plan = Exit(0.4, context, k=2)(grades)
    easy = easy_of(grades, 0.4)
    kept = 2 if context == "average_top_k" else 0
    leaves, speaks = np.zeros_like(easy), np.zeros_like(easy)
    target = np.arange(len(easy))
    for best_first in groups_of(grades, easy):
        rest = best_first[kept:]
        if rest:
            leaves[rest], speaks[rest[0]], target[rest] = True, True, rest[0]
    np.testing.assert_array_equal(plan.leaves, leaves)
    np.testing.assert_array_equal(plan.context, speaks)
    np.testing.assert_array_equal(plan.target, target)
    np.testing.assert_array_equal(plan.goes, leaves & ~speaks)


def test_forced_shares_stay_whatever_the_threshold():
    slots = [(9, label, graded) for label in range(3) for graded in (True,) * 4 + (False,)] * 20
    grades = grades_of(slots)
    for threshold in (0.1, 0.9999):
        plan = forced(Exit(threshold, "remove"), jnp.array([0.25, 1.0]), 0)(grades)
        leaves = np.asarray(plan.leaves).reshape(IMAGES, -1)
        graded = np.asarray(grades.graded).reshape(IMAGES, -1)
        assert not leaves[~graded].any() and not leaves[1].any()
        assert abs(leaves[0][graded[0]].mean() - 0.75) < 0.1


def test_remove_needs_no_k():
    assert Exit(0.5, "remove", k=0).k == 0


def test_remove_and_share():
    grades = grades_of([(i, 0, True) for i in range(10)])
    np.testing.assert_array_equal(Exit(0.4, "remove")(grades).leaves, easy_of(grades, 0.4))
    # Images of slots 0-4 and 5-9: 35 % of five is one token, the best of its image.
    leaves = Exit(0.99, "remove", share=0.35)(grades).leaves
    assert np.flatnonzero(leaves).tolist() == [4, 9]


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"threshold": 0.5, "context": "topk"},
        {"threshold": 0.5, "k": 0},
        {"threshold": 0.5, "share": 1.0},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError, match="config.method"):
        Exit(**wrong)
