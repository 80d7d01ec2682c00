"""Losses against optax and loops written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import losses
from jaxseg.losses import Term

RNG = np.random.default_rng(0)
K, SIZE = 4, (6, 5)


def random_labels(batch, classes=K, ignored=0.2):
    labels = RNG.integers(0, classes, (batch, *SIZE)).astype(np.uint8)
    labels[RNG.random(labels.shape) < ignored] = losses.IGNORE
    return labels


def case(name):
    """Labels of two images that show one situation each."""
    labels = random_labels(2)
    if name == "an ignored image":
        labels[1] = losses.IGNORE
    elif name == "all ignored":
        labels[:] = losses.IGNORE
    elif name == "single class":
        labels[:] = 2
    return labels


CASES = ["mixed", "an ignored image", "all ignored", "single class"]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
    x = np.exp(np.asarray(x, np.float64))
    return x / x.sum(-1, keepdims=True)


# --- focal and dice


def test_focal_is_that_of_optax():
    logits = RNG.normal(0, 4, (2, K, *SIZE)).astype(np.float32)
    targets = RNG.integers(0, 2, logits.shape).astype(np.float32)
    ours, _ = losses.focal_and_dice(logits, targets)
    theirs = optax.sigmoid_focal_loss(
        jnp.asarray(logits), jnp.asarray(targets), alpha=0.25, gamma=2.0
    )
    np.testing.assert_allclose(ours, theirs.mean((-2, -1)), rtol=1e-5)


def naive_dice(logits, target):
    p = sigmoid(logits)
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def test_dice():
    logits = RNG.normal(0, 4, (2, K, *SIZE)).astype(np.float32)
    targets = RNG.integers(0, 2, logits.shape).astype(np.float32)
    _, ours = losses.focal_and_dice(logits, targets)
    for i in range(2):
        for k in range(K):
            assert abs(float(ours[i, k]) - naive_dice(logits[i, k], targets[i, k])) < 1e-5


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_gradients_of_focal_and_dice(target):
    """Also at 0, where |x| has none, and far out, where exp overflows in the plain form."""
    x = jnp.array([-30.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 30.0]).reshape(-1, 1, 1, 1)
    targets = jnp.full_like(x, target)
    for part, reference in enumerate((_focal, _dice)):
        ours = jax.grad(lambda x, part=part: losses.focal_and_dice(x, targets)[part].sum())(x)
        theirs = jax.grad(lambda x, f=reference: f(x, targets).sum())(x)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def _focal(x, t):
    return optax.sigmoid_focal_loss(x, t, alpha=0.25, gamma=2.0)


def _dice(x, t):
    p = jax.nn.sigmoid(x)
    return 1 - (2 * p * t + 1) / (p + t + 1)


def test_extreme_logits_have_finite_values_and_gradients():
    x = jnp.array([-1e30, -1e4, 0.0, 1e4, 1e30]).reshape(1, 1, 1, -1)
    for target in (jnp.zeros_like(x), jnp.ones_like(x)):

        def total(x, target=target):
            return sum(part.sum() for part in losses.focal_and_dice(x, target))

        value, grad = jax.value_and_grad(total)(x)
        assert np.isfinite(value) and np.isfinite(grad).all()
    labels = jnp.array([[0, 1]], jnp.uint8)
    present = jnp.array([[1.0, 0.0]])
    scores = jnp.array([[[1e30, -1e30], [-1e30, 1e30]]])
    three = jnp.concatenate([scores, jnp.zeros((1, 2, 1))], axis=-1)
    for grad in (
        jax.grad(lambda s: losses.presence_term(s, present).value())(scores),
        jax.grad(lambda s: losses.query_class_term(s, present).value())(three),
        jax.grad(lambda s: losses.pixel_cross_entropy(s, labels[None], 1.0).value())(scores[None]),
    ):
        assert np.isfinite(grad).all()


# --- ATM terms


@pytest.mark.parametrize("name", CASES)
def test_mask_terms_against_loops(name):
    labels = case(name)
    logits = RNG.normal(0, 2, (2, K, *SIZE)).astype(np.float32)
    focal, dice, count = 0.0, 0.0, 0
    for i in range(2):
        for k in sorted(set(labels[i].ravel()) - {losses.IGNORE}):
            target = (labels[i] == k).astype(np.float64)  # ignored pixels are negatives
            p = sigmoid(logits[i, k])
            p_t = np.where(target == 1, p, 1 - p)
            weight = np.where(target == 1, 0.25, 0.75)
            focal += (-weight * (1 - p_t) ** 2 * np.log(p_t)).mean()
            dice += naive_dice(logits[i, k], target)
            count += 1
    terms = losses.mask_terms(jnp.asarray(logits), jnp.asarray(labels))
    assert float(terms["loss_mask"].count) == float(terms["loss_dice"].count) == count
    np.testing.assert_allclose(terms["loss_mask"].value(), 20 * focal / max(count, 1), rtol=1e-5)
    np.testing.assert_allclose(terms["loss_dice"].value(), dice / max(count, 1), rtol=1e-5)


def test_classes_absent_from_an_image_have_no_mask_gradient():
    labels = case("single class")
    grad = jax.grad(lambda x: losses.mask_terms(x, labels)["loss_dice"].value())(
        jnp.zeros((2, K, *SIZE))
    )
    assert (abs(grad[:, 2]) > 0).all() and (grad[:, [0, 1, 3]] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_presence_against_loops(name):
    """Binary per class: column 0 = present; absent classes weigh 0.1, in the denominator too."""
    labels = case(name)
    scores = RNG.normal(0, 2, (2, K, 2)).astype(np.float32)
    total = weights = 0.0
    for i in range(2):
        for k in range(K):
            there = k in labels[i]
            weight = 1.0 if there else 0.1
            total -= weight * np.log(softmax(scores[i, k])[0 if there else 1])
            weights += weight
    present = losses.present_classes(jnp.asarray(labels), K)
    term = losses.presence_term(jnp.asarray(scores), present)
    np.testing.assert_allclose(term.value(), total / weights, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_query_classes_against_loops(name):
    """K + 1 ways: query k says k or "no object" (last, weight 0.1)."""
    labels = case(name)
    scores = RNG.normal(0, 2, (2, K, K + 1)).astype(np.float32)
    total = weights = 0.0
    for i in range(2):
        for k in range(K):
            there = k in labels[i]
            weight = 1.0 if there else 0.1
            total -= weight * np.log(softmax(scores[i, k])[k if there else K])
            weights += weight
    present = losses.present_classes(jnp.asarray(labels), K)
    term = losses.query_class_term(jnp.asarray(scores), present)
    np.testing.assert_allclose(term.value(), total / weights, rtol=1e-5)


# --- pixel cross entropy


@pytest.mark.parametrize("name", CASES)
def test_pixel_cross_entropy_counts_ignored_pixels_in_the_denominator(name):
    labels = case(name)
    logits = RNG.normal(0, 2, (2, *SIZE, K)).astype(np.float32)
    total = 0.0
    for index in np.ndindex(labels.shape):
        if labels[index] != losses.IGNORE:
            total -= np.log(softmax(logits[index])[labels[index]])
    ours = losses.pixel_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.4).value()
    np.testing.assert_allclose(ours, 0.4 * total / labels.size, rtol=1e-5, atol=1e-9)


# --- terms over devices


def all_terms(masks, two, many, pixels, labels):
    present = losses.present_classes(labels, K)
    return {
        **losses.mask_terms(masks, labels),
        "presence": losses.presence_term(two, present),
        "query": losses.query_class_term(many, present),
        "pixel": losses.pixel_cross_entropy(pixels, labels, 1.0),
    }


def test_two_devices_make_the_loss_and_gradient_of_the_joined_batch():
    """Also where one half has no labelled pixel at all."""
    labels = random_labels(4)
    labels[2:] = losses.IGNORE
    arrays = [
        RNG.normal(0, 2, (4, *shape)).astype(np.float32)
        for shape in ((K, *SIZE), (K, 2), (K, K + 1), (*SIZE, K))
    ]

    def values(devices_mean, *batch):
        return {n: term.value(devices_mean) for n, term in all_terms(*batch).items()}

    def total(arrays, labels, devices_mean):
        parts = values(devices_mean, *arrays, labels)
        return sum(parts.values()), parts

    def identity(count):
        return count

    def pmean(x):
        return jax.lax.pmean(x, "batch")

    grad, joined = jax.grad(total, has_aux=True)([jnp.asarray(a) for a in arrays], labels, identity)

    def per_device(arrays, labels):
        grads, parts = jax.grad(total, has_aux=True)(arrays, labels, pmean)
        return grads, pmean(parts)

    halves = [jnp.asarray(a).reshape(2, 2, *a.shape[1:]) for a in (*arrays, labels)]
    run = jax.pmap(per_device, axis_name="batch", devices=jax.devices()[:2])
    grads, parts = run(halves[:-1], halves[-1])
    for name in joined:
        np.testing.assert_allclose(parts[name][0], joined[name], rtol=1e-5, err_msg=name)
    for ours, theirs in zip(grads, grad, strict=True):
        # The mean over devices is left to the step, hence half of it here.
        np.testing.assert_allclose(ours.reshape(theirs.shape) / 2, theirs, atol=1e-6)


def test_nothing_over_nothing_is_zero():
    zero = jnp.zeros(())
    assert float(Term(zero, zero).value()) == 0.0


def test_bfloat16_logits_are_summed_in_float32():
    labels = jnp.asarray(random_labels(2))
    arrays = [
        jnp.asarray(RNG.normal(0, 2, (2, *shape))).astype(jnp.bfloat16)
        for shape in ((K, *SIZE), (K, 2), (K, K + 1), (*SIZE, K))
    ]
    exact = all_terms(*[a.astype(jnp.float32) for a in arrays], labels)
    for name, term in all_terms(*arrays, labels).items():
        assert term.total.dtype == jnp.float32
        np.testing.assert_allclose(term.value(), exact[name].value(), rtol=1e-6)
