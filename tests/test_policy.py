"""The policy that grades windows: its model and loss, its training, and segmenters that use it."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eval as evaluation
import train
from jaxseg import build, model_dir
from jaxseg.errors import UserError
from jaxseg.models.initial import draw
from jaxseg.models.macs import policy_macs
from jaxseg.models.network import network, shapes
from jaxseg.models.policy import OracleSpec, PolicySpec
from jaxseg.tools import bench

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
    for where, message in (("", "needs a policy"), (str(runs / "dense"), "does not fit")):
        config = step_config(policy=where)
        spec = build.segmenter_spec(config, len(stored.classes))
        with pytest.raises(UserError, match=message):
            model_dir.arrays_for(stored, config, spec)
    # One that was trained for four sides serves CTS, and the dense form takes none of it.
    config = step_config(policy=str(runs / "policy"), merge="cts", windows=3)
    spec = build.segmenter_spec(config, len(stored.classes))
    arrays = model_dir.arrays_for(stored, config, spec)
    assert "policy.head.kernel" in arrays and "policy.larger.0.out.kernel" not in arrays
    dense = spec.dense()
    assert set(model_dir.arrays_for(stored, config, dense)) == set(stored.arrays)


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
    assert build.segmenter_spec(segmenter, 3).merge is None  # bit for bit the dense network


def test_bench_forces_merge_rates(monkeypatch):
    from jaxseg.inference import EvalSpec

    monkeypatch.setattr(bench, "faster", lambda ways, seconds: "one batch")
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
