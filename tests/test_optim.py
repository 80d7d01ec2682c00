"""Schedules against tables worked out by hand, optimisers against torch's definitions in numpy."""

import math
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from jaxseg.errors import UserError
from jaxseg.optim import OptimSpec, learning_rate, make_optimizer, trainable

BASE = OptimSpec(lr=2e-5, weight_decay=0.01, total_steps=40_000, warmup_steps=1500)
NAMES = ("vit.norm.scale", "vit.patch.kernel", "heads.0.norm.scale", "heads.0.q")


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=(3, 4))).astype(np.float32) for name in NAMES}


def run(spec, steps, grads):
    optimizer = make_optimizer(spec, NAMES)
    params = random_tree(0)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


# (t, factor): the two formulas of mmengine with W = 1500, T = 40000, power 0.9.
MMENGINE = [
    (0, 1e-6),
    (1, 1 / 1499 + 1e-6 * 1498 / 1499),
    (749, 749 / 1499 + 1e-6 * 750 / 1499),
    (1499, 1.0),
    (1500, 1.0),
    (20_000, (19_999 / 38_499) ** 0.9),
    (39_998, (1 / 38_499) ** 0.9),
    (39_999, 0.0),
    (50_000, 0.0),
]


@pytest.mark.parametrize("step, factor", MMENGINE)
def test_mmengine_poly(step, factor):
    got = float(learning_rate(BASE)(step))
    np.testing.assert_allclose(got, 2e-5 * factor, rtol=1e-5, atol=1e-15)


# mmcv 0.x with power 2: (1 - t/T)^2 from step 0, times 1e-6 + (1 - 1e-6) t/W below W.
MMCV = [
    (0, 1e-6),
    (750, (0.5 + 0.5e-6) * (1 - 750 / 80_000) ** 2),
    (1499, (1499 / 1500 + 1e-6 / 1500) * (1 - 1499 / 80_000) ** 2),
    (1500, (1 - 1500 / 80_000) ** 2),
    (79_999, (1 / 80_000) ** 2),
    (80_000, 0.0),
]


@pytest.mark.parametrize("step, factor", MMCV)
def test_mmcv_poly(step, factor):
    spec = replace(BASE, total_steps=80_000, power=2.0, warmup_multiplies=True)
    got = float(learning_rate(spec)(step))
    np.testing.assert_allclose(got, 2e-5 * factor, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("step, factor", [(0, 1e-6), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_cosine_with_warmup(step, factor):
    spec = replace(BASE, lr=1.0, schedule="cosine", warmup_steps=10, total_steps=101)
    np.testing.assert_allclose(learning_rate(spec)(step), factor, rtol=1e-5, atol=1e-7)


def test_end_rate_is_reached_and_kept():
    spec = replace(BASE, lr=0.01, end_lr=1e-4, warmup_steps=0, total_steps=11, power=1.0)
    got = [float(learning_rate(spec)(t)) for t in (0, 5, 10, 99)]
    np.testing.assert_allclose(got, [0.01, 0.00505, 1e-4, 1e-4], rtol=1e-5)


def test_one_step_of_warmup_starts_low():
    spec = replace(BASE, lr=1.0, warmup_steps=1, warmup_start=0.1, total_steps=3, power=1.0)
    got = [float(learning_rate(spec)(t)) for t in range(3)]
    np.testing.assert_allclose(got, [0.1, 1.0, 0.0], rtol=1e-6)


def test_adamw_is_torch_adamw():
    spec = replace(
        BASE, lr=0.1, weight_decay=0.3, warmup_steps=0, total_steps=6, power=1.0,
        lr_multipliers=(("head", 10.0), ("norm", 3.0)), no_decay=("vit.norm",),
    )  # fmt: skip
    got = run(spec, 5, lambda step: random_tree(step + 1))

    for name, p in random_tree(0).items():
        factor = {"h": 10.0, "v": 3.0 if "norm" in name else 1.0}[name[0]]
        decay = 0.0 if name == "vit.norm.scale" else 0.3
        p, m, v = p.astype(np.float64), 0.0, 0.0
        for t in range(5):
            g = random_tree(t + 1)[name].astype(np.float64)
            lr = 0.1 * factor * (1 - t / 5)
            p = p * (1 - lr * decay)
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            denominator = np.sqrt(v) / math.sqrt(1 - 0.999 ** (t + 1)) + 1e-8
            p = p - lr / (1 - 0.9 ** (t + 1)) * m / denominator
        np.testing.assert_allclose(got[name], p, rtol=1e-4, atol=1e-4, err_msg=name)


def test_sgd_is_torch_sgd_with_momentum():
    spec = replace(
        BASE, lr=0.1, weight_decay=0.3, warmup_steps=0, total_steps=6, power=1.0,
        optimizer="sgd", momentum=0.8, end_lr=0.02, lr_multipliers=(("head", 10.0),),
    )  # fmt: skip
    got = run(spec, 5, lambda step: random_tree(step + 1))

    for name, p in random_tree(0).items():
        base = 1.0 if "head" in name else 0.1
        p, buffer = p.astype(np.float64), 0.0
        for t in range(5):
            buffer = 0.8 * buffer + random_tree(t + 1)[name] + 0.3 * p
            p = p - (0.02 + (base - 0.02) * (1 - t / 5)) * buffer
        np.testing.assert_allclose(got[name], p, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_uses_the_norm_over_all_parameters(scale):
    spec = replace(BASE, lr=1.0, weight_decay=0.0, warmup_steps=0, optimizer="sgd", clip_norm=2.0)
    grads = random_tree(1, scale)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
    got = run(spec, 1, lambda step: grads)
    for name, p in random_tree(0).items():
        expected = p - grads[name] * min(1.0, 2.0 / norm)
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(lr_multipliers=(("head", 10.0), ("haed", 2.0))), ['lr_multipliers: "haed"', "4"]),
        (dict(no_decay=("bias",)), ['no_decay: "bias"', "vit.norm.scale"]),
        (dict(no_decay=("(",)), ['no_decay: "("', "regular expression"]),
        (dict(optimizer="lion"), ["lion", "adamw", "sgd"]),
        (dict(schedule="linear"), ["linear", "poly", "cosine"]),
        (dict(total_steps=1500), ["total_steps is 1500", "warmup_steps"]),
    ],
)
def test_mistakes_are_named(change, words):
    with pytest.raises(UserError) as error:
        make_optimizer(replace(BASE, **change), NAMES)
    for word in words:
        assert word in str(error.value)


def test_frozen_parameters_are_not_trained():
    spec = OptimSpec(lr=1.0, weight_decay=0.0, total_steps=2, freeze=("^vit", "norm"))
    assert trainable(spec, ["vit.a", "heads.0.norm", "heads.0.b"]) == ["heads.0.b"]
    with pytest.raises(UserError, match="nothing to train"):
        trainable(replace(spec, freeze=("",)), ["vit.a"])
    with pytest.raises(UserError, match="matches none"):
        trainable(replace(spec, freeze=("^vti",)), ["vit.a"])
