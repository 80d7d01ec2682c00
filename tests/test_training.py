"""The step: devices, micro-batches, bad steps, averaging; and the whole command's resume."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import optim, parallel, training
from jaxseg.errors import UserError
from jaxseg.models import atm
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import ViTSpec

VIT = ViTSpec(width=16, depth=2, heads=2, grid=(2, 3), patch=8)
ATM = SegmenterSpec(VIT, tuple(HeadSpec((i,), AtmSpec(4, 8, 2, layers=1)) for i in range(2)))
CONV = SegmenterSpec(VIT, tuple(HeadSpec((i,), ConvSpec(4, channels=8)) for i in range(2)))
PLAN = training.TrainSpec(
    seed=0,
    steps=4,
    accumulate=1,
    ema=0.0,
    bfloat16=False,
    log_every=1,
    eval_every=0,
    checkpoint_every=100,
    max_bad_steps=2,
)


def a_batch(seed: int, size: int = 4) -> dict:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (size, 16, 24)).astype(np.uint8)
    label[: size // 2] %= 2  # devices see different numbers of classes
    label[0, :3] = 255
    return {"image": rng.standard_normal((size, 16, 24, 3), np.float32), "label": label}


def setup(spec: SegmenterSpec, plan: training.TrainSpec = PLAN):
    """(step body, state on the host); plain SGD keeps small differences small."""
    params, stats = draw(*shapes(spec), seed=0)
    settings = optim.OptimSpec(lr=0.1, weight_decay=0.0, total_steps=4, optimizer="sgd")
    optimizer = optim.make_optimizer(settings, params)
    rate = optim.learning_rate(settings)
    step = training.make_step(network(spec, parallel.AXIS), optimizer, rate, tuple(params), plan)
    return step, training.initial_state(params, stats, optimizer, tuple(params), plan)


def run(step, state, batches, devices: int = 2):
    """The state and the last metrics after the batches, on ``devices`` devices."""
    run_step = jax.pmap(
        step, axis_name=parallel.AXIS, in_axes=(0, 0, None), devices=jax.devices()[:devices]
    )
    state = jax.tree.map(lambda x: np.stack([x] * devices), state)
    for batch in batches:
        split = {n: v.reshape(devices, -1, *v.shape[1:]) for n, v in batch.items()}
        state, values = run_step(state, split, jax.random.key(0))
    return jax.tree.map(lambda x: np.asarray(x)[0], (state, values))


@pytest.mark.parametrize("spec", [ATM, CONV], ids=["atm", "conv"])
def test_two_devices_equal_one_on_the_joined_batch(spec, monkeypatch):
    monkeypatch.setattr(atm, "DROPOUT", 0.0)  # each device draws its own
    step, state = setup(spec)
    batches = [a_batch(1), a_batch(2)]
    one, of_one = run(step, state, batches, devices=1)
    two, of_two = run(step, state, batches, devices=2)
    moved = max(np.abs(one["params"][n] - state["params"][n]).max() for n in one["params"])
    assert moved > 1e-3
    for name in one["params"]:
        np.testing.assert_allclose(two["params"][name], one["params"][name], atol=2e-6)
    for name in one["stats"]:
        np.testing.assert_allclose(two["stats"][name], one["stats"][name], atol=2e-6)
    for name in of_one:
        np.testing.assert_allclose(of_two[name], of_one[name], rtol=1e-4, atol=1e-6)


def test_dropout_differs_between_devices_and_steps():
    step, state = setup(ATM)
    same_halves = {n: np.concatenate([v, v]) for n, v in a_batch(1, 2).items()}
    two, _ = run(step, state, [same_halves], devices=2)
    one, _ = run(step, state, [a_batch(1, 2)], devices=1)
    gap = max(np.abs(two["params"][n] - one["params"][n]).max() for n in one["params"])
    assert gap > 1e-4


def test_accumulation_of_equal_micro_batches_is_one_of_them(monkeypatch):
    monkeypatch.setattr(atm, "DROPOUT", 0.0)
    step, state = setup(ATM)
    whole, _ = run(step, state, [a_batch(1)], devices=1)
    step, state = setup(ATM, dataclasses.replace(PLAN, accumulate=2))
    twice = {n: np.concatenate([v, v]) for n, v in a_batch(1).items()}
    parts, _ = run(step, state, [twice], devices=1)
    for name in whole["params"]:
        np.testing.assert_allclose(parts["params"][name], whole["params"][name], atol=2e-6)


def test_bad_step_is_skipped_and_counted():
    step, state = setup(CONV)
    bad = a_batch(1)
    bad["image"][0, 0, 0, 0] = np.nan
    after, values = run(step, state, [bad])
    assert (after["bad_steps"], after["skipped_steps"], after["step"]) == (1, 1, 1)
    for part in ("params", "stats", "opt"):
        for old, new in zip(
            jax.tree.leaves(state[part]), jax.tree.leaves(after[part]), strict=True
        ):
            np.testing.assert_array_equal(old, new)
    after, _ = run(step, state, [bad, bad, a_batch(2)])
    assert (after["bad_steps"], after["skipped_steps"], after["step"]) == (0, 2, 3)
    assert np.isfinite(after["params"]["vit.pos_embed"]).all()


def test_average_of_weights():
    step, state = setup(ATM, dataclasses.replace(PLAN, ema=0.9))
    after, _ = run(step, state, [a_batch(1)])
    name = "heads.1.queries"
    expected = 0.9 * state["params"][name] + 0.1 * after["params"][name]
    np.testing.assert_allclose(after["ema"][name], expected, atol=1e-7)
    kept, _ = training.weights_of(after)
    assert all(kept[name] is value for name, value in after["ema"].items())


def test_bfloat16_keeps_float32_weights_and_comes_close():
    step, state = setup(ATM, dataclasses.replace(PLAN, bfloat16=True))
    after, values = run(step, state, [a_batch(1)], devices=1)
    assert {v.dtype for v in after["params"].values()} == {np.dtype(np.float32)}
    step, state = setup(ATM)
    _, exact = run(step, state, [a_batch(1)], devices=1)
    assert values["loss"] == pytest.approx(float(exact["loss"]), rel=0.03)


def hooks(scores=(), stop_after=None):
    seen = {"log": [], "saved": [], "calls": 0}

    def stop():
        seen["calls"] += 1
        return stop_after is not None and seen["calls"] >= stop_after

    return seen, training.Hooks(
        log=lambda step, values: seen["log"].append(step),
        checkpoint=lambda step, state, score: seen["saved"].append((step, score)),
        evaluate=lambda step, params, stats: 0.5,
        stop=stop,
    )


def test_loop_logs_validates_and_saves_when_due():
    step, state = setup(CONV, dataclasses.replace(PLAN))
    plan = dataclasses.replace(PLAN, steps=5, log_every=2, eval_every=3, checkpoint_every=2)
    seen, report = hooks()
    last = training.fit(step, state, (a_batch(i) for i in range(9)), plan, report)
    assert last["step"] == 5
    assert seen["log"] == [1, 2, 4, 5]
    assert seen["saved"] == [(2, None), (3, 0.5), (4, None), (5, 0.5)]


def test_loop_stops_with_a_checkpoint_when_asked():
    step, state = setup(CONV)
    seen, report = hooks(stop_after=2)
    last = training.fit(step, state, (a_batch(i) for i in range(9)), PLAN, report)
    assert last["step"] == 2 and seen["saved"] == [(2, None)]


def test_loop_gives_up_after_too_many_bad_steps():
    step, state = setup(CONV)
    bad = a_batch(1)
    bad["image"][:] = np.inf
    _, report = hooks()
    with pytest.raises(UserError, match="2 non-finite steps in a row.*optim.lr"):
        training.fit(step, state, (bad for _ in range(9)), PLAN, report)


def test_mean_of_nothing_present_is_zero_not_nan():
    step, state = setup(ATM)
    empty = a_batch(1)
    empty["label"][:] = 255
    after, values = run(step, state, [empty])
    assert values["decode.loss_mask"] == 0 and after["skipped_steps"] == 0
    assert jnp.isfinite(values["loss"])
