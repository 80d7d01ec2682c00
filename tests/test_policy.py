"""The policy that grades windows: its model and loss, its training, and segmenters that use it."""

import importlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eval as evaluation
import jaxseg
import train
from jaxseg import build, model_arrays, model_dir, tasks
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError
from jaxseg.models.initial import draw
from jaxseg.models.macs import policy_macs
from jaxseg.models.network import network, shapes
from jaxseg.models.policy import OracleSpec, PolicySpec, heads_for
from jaxseg.tools import bench, flops, forced, sweep

SIDES = (2, 4)
SPEC = PolicySpec(SIDES, "smoke", 3, (1.0, 0.98))


def bound(spec=SPEC):
    return network(spec).bind(*draw(*shapes(spec), seed=0))


def config_of(name: str, **changes):
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    for field, value in changes.items():
        config[field] = value
    return config


def test_every_full_window_gets_a_logit():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 100, 167, 3), np.float32))
    found = bound()(images)  # 7 x 11 patches, 4 x 6 cells
    assert {s: x.shape for s, x in found.items()} == {2: (2, 3, 5), 4: (2, 1, 2)}
    # A window sees what the trunk sees around it, so that only far pixels leave it alone.
    alone = bound()(images.at[:, :, 120:].set(0.0))
    assert (
        np.abs(alone[4][:, :, 0] - found[4][:, :, 0]).max()
        < np.abs(alone[4][:, :, 1] - found[4][:, :, 1]).max()
    )


def test_the_loss_is_binary_cross_entropy_without_windows_that_are_left_out():
    spec = PolicySpec((2,), "smoke", 3, (1.0,), border=True)
    model = bound(spec)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 96, 96, 3), np.float32))
    labels = np.zeros((1, 96, 96), np.uint8)
    labels[0, :32, 40] = 255  # a window on the rim: left out
    labels[0, 40, :32] = 1  # a mixed one
    (term,) = model.losses(images, jnp.asarray(labels)).values()
    p = 1 / (1 + np.exp(-np.asarray(model(images)[2][0], np.float64)))
    pure = np.ones((3, 3), bool)
    pure[1, 0] = False
    nll = -np.log(np.where(pure, p, 1 - p))
    nll[0, 1] = 0.0
    assert float(term.count) == 8
    assert float(term.total) == pytest.approx(nll.sum(), rel=1e-4)


def test_gradients_are_finite_where_all_cells_are_equal():
    params, stats = draw(*shapes(SPEC), seed=0)
    images, labels = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64), jnp.uint8)

    @jax.jit
    def loss(params):
        model = network(SPEC).bind(params, stats)
        terms = model.losses(images, labels, key=jax.random.key(0))
        return sum(term.value() for term in terms.values())

    grads = jax.grad(loss)(params)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert np.abs(grads["larger.0.hidden.kernel"]).max() > 0


def test_the_loss_is_the_mean_over_sides():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 3), np.float32))
    labels = jnp.zeros((1, 64, 64), jnp.uint8)  # of one class: every weight is 1
    model = bound()
    terms = model.losses(images, labels)
    nll = [float(jax.nn.softplus(-logits).mean()) for logits in model(images).values()]
    assert list(terms) == ["loss_2", "loss_4"]
    assert float(sum(t.value() for t in terms.values())) == pytest.approx(np.mean(nll), rel=1e-4)


def test_two_devices_make_the_loss_and_gradient_of_the_joined_batch():
    """Windows of one class are rarer on one of them."""
    params, stats = draw(*shapes(SPEC), seed=0)
    images = np.random.default_rng(0).standard_normal((4, 128, 128, 3), np.float32)
    mixed = np.zeros((4, 4, 4), bool)
    mixed[0, 0, 0] = mixed[2, 0] = mixed[3, :3, 1] = True
    labels = np.zeros((4, 128, 128), np.uint8)
    labels[:, 8:24, 8:24] = 1
    labels = np.tile(labels[:, :32, :32], (1, 4, 4)) * mixed.repeat(32, 1).repeat(32, 2)

    def total(params, images, labels, axis, devices_mean):
        model = network(SPEC, axis).bind(params, stats)
        terms = model.losses(images, labels, key=jax.random.key(0))
        return sum(term.value(devices_mean) for term in terms.values())

    def pmean(x):
        return jax.lax.pmean(x, "batch")

    def per_device(images, labels):
        return pmean(jax.value_and_grad(total)(params, images, labels, "batch", pmean))

    @jax.jit
    def at_once(images, labels):
        return jax.value_and_grad(total)(params, images, labels, None, lambda count: count)

    joined, grads = at_once(images, labels)
    run = jax.pmap(per_device, axis_name="batch", devices=jax.devices()[:2])
    ours, halves = run(images.reshape(2, 2, 128, 128, 3), labels.reshape(2, 2, 128, 128))
    np.testing.assert_allclose(ours[0], joined, rtol=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(halves[name][0], grad, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_macs_tool_counts_a_policy(monkeypatch, capsys):
    config = importlib.import_module("configs.policy_cts_ade20k").get_config()
    monkeypatch.setattr(flops, "FLAGS", SimpleNamespace(config=config, classes=None))
    flops.main(None)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"gmacs_policy": 1.901, "input": [512, 512], "classes": 150}


def test_macs_of_the_policy():
    lite = PolicySpec((2, 4, 8, 16))
    total = policy_macs(lite, (512, 512)).total / 1e9
    assert 1.90 < total < 1.92  # the trunk's 1.9009 of facts, and little for the heads
    assert policy_macs(OracleSpec((2,)), (512, 512)).total == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of a policy and of a dense segmenter, two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    policy = config_of("policy_dcts_camvid")
    policy.data.size = policy.data.crop = (128, 160)
    train.train(policy, str(folder / "policy"), "test")
    dense = config_of("segvit_vitti_camvid")
    dense.model.taps = (0, 1, 2)
    train.train(dense, str(folder / "dense"), "test")
    return folder


def step_config(**method):
    config = config_of("step_vitti_camvid")
    config.data.update(data_of("segvit_vitti_camvid"))
    config.data.size = (128, 160)
    config.eval.update(mode="whole", batch_size=1, pictures=1)
    config.policy.purity = (0.6, 0.5, 0.5, 0.5)  # drawn shapes are rarely of one class
    config.method.update(tau2=0.0, tau4=0.4)
    config.method.update(method)
    return config


def data_of(name: str):
    return config_of(name).data


def test_a_policy_is_judged_side_by_side_with_the_labels(runs, capsys):
    found = evaluation.evaluate(None, str(runs / "policy"), str(runs / "judged"))
    assert found["images"] == 2 and 0 < found["tokens_left_oracle"] <= 1
    assert "precision_2" in found and "decided_purity_4" in found
    assert json.loads((runs / "judged" / "results.json").read_text()) == found
    assert (runs / "judged" / "merges" / "tokens.png").exists()
    assert "tokens left" in capsys.readouterr().out


def test_step_without_training_on_a_dense_model(runs, capsys):
    config = step_config(policy=str(runs / "policy"))
    found = evaluation.evaluate(config, str(runs / "dense"), str(runs / "step"))
    assert found["tokens_after_merging"] <= 0.3  # tau2 of 0: every window of 2x2 is merged
    assert found["gmacs_per_image"] > 0 and found["exit_layers"] == [1, 2]
    assert len(list((runs / "step" / "merges").glob("*.png"))) == 2
    assert len(list((runs / "step" / "exits").glob("*.png"))) == 3
    assert "% of the tokens" in capsys.readouterr().out


def test_labels_instead_of_a_policy(runs):
    config = step_config(policy="oracle", tau2=0.5, tau4=0.5)
    found = evaluation.evaluate(config, str(runs / "dense"), str(runs / "oracle"))
    assert found["tokens_after_merging"] < 1
    config.eval.mode = "slide"
    with pytest.raises(UserError, match="takes images whole"):
        evaluation.evaluate(config, str(runs / "dense"), str(runs / "oracle"))


def test_a_segmenter_needs_a_policy_that_fits(runs):
    stored = model_dir.load(str(runs / "dense"))
    for where, message in (("", "needs a policy"), (str(runs / "dense"), "config.task=segment")):
        config = step_config(policy=where)
        spec = build.segmenter_spec(config, len(stored.classes))
        with pytest.raises(UserError, match=message):
            model_arrays.arrays_for(stored, config, spec)
    # One that was trained for four sides serves CTS, and the dense form takes none of it.
    config = step_config(policy=str(runs / "policy"), merge="cts", windows=3)
    spec = build.segmenter_spec(config, len(stored.classes))
    arrays = model_arrays.arrays_for(stored, config, spec)
    assert "policy.head.kernel" in arrays and "policy.larger.0.out.kernel" not in arrays
    dense = spec.dense()
    assert set(model_arrays.arrays_for(stored, config, dense)) == set(stored.arrays)


def saved(config, folder) -> dict:
    """A model of ``config`` that nothing has trained, in ``folder``; its arrays."""
    policy = config.task == "policy"
    spec = (build.policy_spec if policy else build.segmenter_spec)(config, 2)
    params, stats = draw(*shapes(spec), seed=int(policy))
    classes = make_classes(["sky", "road"])
    model_dir.save(str(folder), params, stats, config, classes)
    return model_dir.load(str(folder)).arrays


def policy_config(*sides: int):
    config = config_of("policy_dcts_camvid")
    config.policy.update(sides=sides, purity=(1.0,) * len(sides))
    config.method.update({f"tau{s}": 0.5 if s in sides else 2.0 for s in (2, 4, 8, 16)})
    return config


def head_of(arrays: dict, number: int, start: str = "policy.") -> np.ndarray:
    return arrays[f"{start}larger.{number}.hidden.kernel"]


def test_heads_are_found_by_their_side_not_by_their_number():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 128, 128, 3), np.float32))
    params, stats = draw(*shapes(PolicySpec((4, 2, 8), "smoke")), seed=0)
    every = network(PolicySpec((4, 2, 8), "smoke")).bind(params, stats)(images)
    for sides in ((2, 8), (8,), (2, 4, 8)):
        some = heads_for(params, (4, 2, 8), sides)
        found = network(PolicySpec(sides, "smoke")).bind(some, stats)(images)
        for side in sides:
            np.testing.assert_array_equal(found[side], every[side])


def test_a_segmenter_merges_fewer_sides_than_its_policy_was_trained_for(tmp_path):
    policy = saved(policy_config(2, 4, 8), tmp_path / "policy")
    config = step_config(policy=str(tmp_path / "policy"), tau4=2.0, tau16=2.0)
    spec = build.segmenter_spec(config, 2)
    arrays = model_arrays.policy_arrays(config, spec)
    assert set(spec.merge.policy.sides) == {2, 8} and "policy.larger.1.out.kernel" not in arrays
    np.testing.assert_array_equal(head_of(arrays, 0), head_of(policy, 1, ""))
    config.method.update(tau8=2.0, tau16=0.9)
    with pytest.raises(UserError, match="grades windows of side 2, 4, 8, not 16; .*tau16=2.0"):
        model_arrays.policy_arrays(config, build.segmenter_spec(config, 2))


def test_a_trained_segmenter_is_evaluated_with_fewer_sides(tmp_path):
    stored = saved(step_config(policy="gone", tau2=2.0), tmp_path)
    found = jaxseg.load(tmp_path, step_config(policy="gone", tau2=2.0, tau4=2.0, tau16=2.0))
    assert found.spec.merge.policy.sides == (8,)
    np.testing.assert_array_equal(head_of(found.arrays, 0), head_of(stored, 1))
    with pytest.raises(UserError, match="grades windows of side 4, 8, 16, not 2"):
        jaxseg.load(tmp_path, step_config(policy=""))


def test_a_named_policy_goes_before_the_stored_one(tmp_path):
    policy = saved(policy_config(2, 4, 8, 16), tmp_path / "policy")
    stored = saved(step_config(), tmp_path / "step")
    for where, arrays, start in ((str(tmp_path / "policy"), policy, ""), ("", stored, "policy.")):
        found = jaxseg.load(tmp_path / "step", step_config(policy=where))
        np.testing.assert_array_equal(head_of(found.arrays, 2), head_of(arrays, 2, start))
    assert not np.array_equal(head_of(policy, 2, ""), head_of(stored, 2))


def test_a_policy_is_judged_by_the_heads_of_the_sides_that_are_asked_for(tmp_path):
    saved(policy_config(2, 4, 8), tmp_path)
    config = policy_config(2, 8)
    config.data.update(size=(128, 128), count=(1, 1, 1))
    stored = model_dir.load(str(tmp_path))
    source = build.make_source(config, "test")
    named = stored.arrays | {n: 0 * v for n, v in stored.arrays.items() if "larger.0" in n}
    fewer = [
        tasks.policy.evaluate(config, replace(stored, arrays=arrays), source, tmp_path)
        for arrays in (stored.arrays, named)
    ]
    assert fewer[0] == fewer[1]  # the head of 4x4 is not asked
    with pytest.raises(UserError, match="not 16"):
        tasks.policy.evaluate(policy_config(2, 16), stored, source, tmp_path)


def test_labels_do_not_train():
    config = step_config(policy="oracle")
    spec = build.segmenter_spec(config, 2)
    with pytest.raises(UserError, match="config.method.policy='oracle' reads labels"):
        tasks.segment.start(config, spec, {}, {})
    config.method.merge = "none"
    model_arrays.no_oracle(config)


def test_impossible_policies_are_refused():
    config = config_of("policy_cts_camvid")
    config.policy.purity = (1.0, 0.9)
    with pytest.raises(UserError, match="config.policy.purity"):
        build.policy_spec(config, 3)
    config.policy.update(sides=(3,), purity=(1.0,))
    with pytest.raises(UserError, match="config.policy.sides"):
        build.policy_spec(config, 3)
    segmenter = step_config(policy="oracle")
    segmenter.model.patch = 8
    with pytest.raises(UserError, match="merging needs 16"):
        build.segmenter_spec(segmenter, 3)
    segmenter = step_config(policy="oracle")
    segmenter.method.update(tau2=2.0, tau4=2.0, tau8=2.0, tau16=2.0)
    with pytest.raises(UserError, match="merge='dcts' merges nothing"):
        build.segmenter_spec(segmenter, 3)
    segmenter.method.update(merge="cts", windows=0)
    assert build.segmenter_spec(segmenter, 3).merge is None  # bit for bit the dense network


@pytest.mark.parametrize(
    "name, policy, method, message",
    [
        ("dcts", {"sides": (4, 2)}, {}, "sides=(4, 2): name sides once each, rising"),
        ("dcts", {"sides": (2, 2)}, {}, "sides=(2, 2): name sides once each, rising"),
        ("dcts", {"sides": (2, 4)}, {}, "merges windows of side 2, 4, 8, 16, which config.policy"),
        (
            "cts",
            {"sides": (4, 8)},
            {},
            "merges windows of side 2, which config.policy.sides=(4",
        ),
        ("cts", {}, {"windows": 0}, "merges windows of side none"),
        ("dcts", {}, dict.fromkeys(("tau2", "tau4", "tau8", "tau16"), 2.0), "merges nothing"),
        ("dcts", {}, {"merge": "cta"}, "config.method.merge='cta'"),
    ],
)
def test_a_policy_is_trained_for_what_is_merged(name, policy, method, message):
    config = config_of(f"policy_{name}_camvid")
    config.policy.update(policy)
    config.policy.purity = (1.0,) * len(config.policy.sides)
    config.method.update(method)
    with pytest.raises(UserError, match=re.escape(message)):
        build.policy_spec(config, 3)


def test_sweep_merges_what_the_configuration_merges(runs):
    """Thresholds change, the policy of the configuration stays."""
    config = step_config(policy=str(runs / "policy"), tau2=0.0)
    found = sweep.sweep(config, str(runs / "dense"), ["1"], [0.5])
    (row,) = found["rows"]
    assert row["gmacs_per_image"] > 0 and row["exits"] == "1"
    with pytest.raises(UserError, match="'oracle' reads labels"):
        sweep.sweep(step_config(policy="oracle"), str(runs / "dense"), ["1"], [0.5])


def test_merge_rates_are_forced_where_nobody_leaves():
    config = step_config(policy="random", merge="cts", windows=3)
    config.method.name = "dense"
    spec = build.segmenter_spec(config, 5)
    rates = [forced.draw_rates(keep, 2, 4, np.random.default_rng(0)) for keep in ((0.5,), ())]
    assert [r.shape for r in rates] == [(2, 1, 4), (2, 0, 4)]
    ours = forced.forced_spec(spec, jnp.asarray(np.concatenate(rates, axis=1)[0]))
    assert ours.exits == () and ours.merge.decide is not spec.merge.decide


def test_bench_forces_merge_rates(monkeypatch):
    from jaxseg.inference import EvalSpec

    monkeypatch.setattr(bench, "faster", lambda *_: ("one batch", 0.0))
    config = step_config(policy="random", tau8=2.0, tau16=2.0)
    spec = build.segmenter_spec(config, 5)
    params, stats = draw(*shapes(spec), 0)
    how = EvalSpec(mode="whole", crop=(128, 128), stride=(128, 128), batch_size=2)
    found = bench.bench(
        spec,
        params | stats,
        (0.5, 0.4),
        how,
        merge=(0.5, 0.3),
        rounds=2,
        seconds=0.0,
        seed=0,
        bfloat16=False,
    )
    assert 16 <= found["tokens_after_merging"] < 64 and len(found["kept"]) == 2
    assert found["gmacs"]["pruned"] > 0
