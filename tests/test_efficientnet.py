"""EfficientNet-Lite0 against a plain NumPy network that runs on PyTorch's arrays and names."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import bind, module_shapes
from fixture_policy import efficientnet
from flax import nnx
from foreign_states import policy_shapes, torch_shapes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from verify_fixture import Check, load, tolerances

from jaxseg.convert.efficientnet import policy_rules, timm_trunk_rules, trunk_rules
from jaxseg.convert.rules import convert
from jaxseg.errors import UserError
from jaxseg.models import efficientnet as module
from jaxseg.models.efficientnet import (
    LITE0,
    Block,
    Depthwise,
    EfficientNetLite0,
    Stage,
    efficientnet_macs,
)
from jaxseg.models.policy import Policy, PolicySpec

CTS = PolicySpec((2,))
SHARED = pathlib.Path(__file__).parents[1].parent / "shared"
CUT = (Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 2, 8), Stage(1, 3, 2, 3, 12))


# --- the network once more: torch's arrays, NCHW, float64


def convolve(x, weight, stride):
    """Zero-padded by k//2; depthwise where the kernel has one input channel."""
    size, (batch, _, height, width) = weight.shape[-1], x.shape
    padded = np.pad(x, ((0, 0), (0, 0), *((size // 2, size // 2),) * 2))
    rows, columns = range(0, height, stride), range(0, width, stride)
    y = np.zeros((batch, len(weight), len(rows), len(columns)))
    for r, top in enumerate(rows):
        for c, left in enumerate(columns):
            window = padded[:, :, top : top + size, left : left + size]
            if weight.shape[1] == 1:
                y[:, :, r, c] = (window * weight[:, 0]).sum(axis=(2, 3))
            else:
                y[:, :, r, c] = np.einsum("bchw,fchw->bf", window, weight)
    return y


class Reference:
    """``training``: batch statistics; ``moved`` then has the running ones afterwards."""

    def __init__(self, state, training=False):
        self.state, self.training, self.moved = state, training, {}

    def norm(self, name, x):
        mean, var = (self.state[f"{name}.running_{part}"] for part in ("mean", "var"))
        if self.training:
            flat = x.swapaxes(0, 1).reshape(x.shape[1], -1).astype(np.float64)
            self.moved[name] = (
                0.9 * mean + 0.1 * flat.mean(1),
                0.9 * var + 0.1 * flat.var(1, ddof=1),
            )
            mean, var = flat.mean(1), flat.var(1)
        scale = self.state[name + ".weight"] / np.sqrt(var + 1e-5)
        shift = self.state[name + ".bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def step(self, conv, norm, x, stride=1, linear=False):
        y = self.norm(norm, convolve(x, self.state[conv + ".weight"].astype(np.float64), stride))
        return y if linear else np.clip(y, 0, 6)

    def trunk(self, x, stages, prefix=""):
        x = self.step(prefix + "conv_stem", prefix + "bn1", x, 2)
        for s, stage in enumerate(stages):
            for i in range(stage.blocks):
                name, stride = f"{prefix}blocks.{s}.{i}.", 1 if i else stage.stride
                if stage.expand == 1:
                    y = self.step(name + "conv_dw", name + "bn1", x, stride)
                    y = self.step(name + "conv_pw", name + "bn2", y, linear=True)
                else:
                    y = self.step(name + "conv_pw", name + "bn1", x)
                    y = self.step(name + "conv_dw", name + "bn2", y, stride)
                    y = self.step(name + "conv_pwl", name + "bn3", y, linear=True)
                x = x + y if stride == 1 and x.shape == y.shape else y
        return x


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def fill(name, shape):
        if name.endswith(("running_var", ".weight")) and len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape)
        if len(shape) == 4:  # about as large behind the layer as before, so that ReLU6 clips some
            return rng.standard_normal(shape) * 1.5 * np.prod(shape[1:]) ** -0.5
        return rng.standard_normal(shape) * 0.5

    return {name: np.asarray(fill(name, s), np.float32) for name, s in shapes.items()}


def images(batch, height, width, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, height, width, 3)).astype(np.float32)


def channels_first(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1.0, np.abs(theirs).max()))


def converted(state):
    """The arrays of the cut trunk from torch's."""
    wanted = module_shapes(EfficientNetLite0(stages=CUT), "")
    return convert(state, trunk_rules("", ""), wanted, "test")


def run(flat, x, training=False, batch_axis=None):
    """The cut trunk: its map, and its statistics afterwards."""
    net = bind(EfficientNetLite0(batch_axis, CUT), flat)
    out = net(x, training=training)
    stats = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    return out, {".".join(map(str, path)): value for path, value in stats.items()}


def compiled(training=False):
    """`run` as one program; a new one every time, for the forms to be looked at again."""
    return jax.jit(lambda flat, x: run(flat, x, training))


FORMS = {"whole": (True, 2**40), "stripes": (True, 100), "other backends": (False, 0)}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    on_cpu, stripe = FORMS[request.param]
    monkeypatch.setattr(module, "_on_cpu", lambda: on_cpu)
    monkeypatch.setattr(module, "STRIPE", stripe)


# --- values


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(7, 10), (8, 1)])
def test_depthwise_pads_both_sides_alike(shape, stride, size, on_cpu, monkeypatch):
    monkeypatch.setattr(module, "_on_cpu", lambda: on_cpu)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((2, *shape, 4), np.float32)
    kernel = rng.standard_normal((size, size, 4), np.float32)
    layer = jax.jit(lambda x: bind(Depthwise(4, size, stride), {"kernel": kernel})(x))
    theirs = convolve(channels_first(x), kernel.transpose(2, 0, 1)[:, None], stride)
    close(channels_first(layer(x)), theirs)


@pytest.mark.parametrize("size", [(48, 32), (37, 51)])
def test_trunk_is_that_of_plain_numpy(form, size):
    state, x = filled(torch_shapes(CUT)), images(2, *size)
    theirs = Reference(state).trunk(channels_first(x), CUT)
    assert theirs.shape[2:] == tuple(-(-side // 8) for side in size)
    out, _ = compiled()(converted(state), x)
    close(channels_first(out), theirs)


def test_policy_net_is_that_of_plain_numpy():
    state, x, net = filled(policy_shapes()), images(1, 45, 70), Policy(CTS)
    flat = convert(state, policy_rules("", ""), module_shapes(net, ""), "test")
    bound = bind(net, flat)
    ours = jax.jit(lambda x: bound.head(bound.trunk(x)))(x)
    shares = bound(x)[2]
    cells = Reference(state).trunk(channels_first(x), LITE0, "backbone.")
    theirs = convolve(cells, state["head.weight"], 1) + state["head.bias"][:, None, None]
    assert ours.shape == (1, 2, 3, 2)
    close(channels_first(ours), theirs, 1e-4)
    assert shares.shape == (1, 1, 2)  # of 3 x 5 patches there are 1 x 2 whole windows
    close(shares, (theirs[:, 1] - theirs[:, 0])[:, :1, :2], 1e-4)


@settings(max_examples=4, deadline=None)
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 6)),
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    expand=st.sampled_from([1, 2]),
    count=st.integers(1, 25),
)
@example((7, 2), 3, 1, 2, 3)  # the last stripe reaches beyond the padding
@example((14, 3), 5, 2, 2, 3)
def test_stripes_are_the_whole(size, kernel, stride, expand, count):
    rng = np.random.default_rng(0)
    block = Block(4, Stage(1, kernel, stride, expand, 4), stride, None)
    flat = {
        n: rng.uniform(0.2, 1, s).astype(np.float32) for n, s in module_shapes(block, "").items()
    }

    @jax.jit
    def both(flat, x):
        bound = bind(block, flat)
        whole = bound._narrow(bound.depthwise(bound._widen(x, False)), False)
        return bound._in_stripes(x, count), whole

    close(*both(flat, rng.standard_normal((2, *size, 4), np.float32)))


def test_bfloat16_stays_and_is_near():
    state, x = filled(torch_shapes(CUT)), images(1, 24, 24)
    low = {
        n: v if n.endswith((".mean", ".var")) else jnp.asarray(v, jnp.bfloat16)
        for n, v in converted(state).items()
    }
    out, _ = compiled()(low, x)
    assert out.dtype == jnp.bfloat16
    theirs = Reference(state).trunk(channels_first(x), CUT)
    error = np.abs(channels_first(out).astype(np.float32) - theirs)
    assert error.mean() < 0.05 * np.abs(theirs).mean()


@pytest.mark.skipif(not SHARED.exists(), reason="the reference files are not here")
def test_reference_file():
    (path,) = (SHARED / "fixtures").glob("F9_*.npz")
    lines = []
    check = Check(load(path), tolerances(path), lines.append)
    efficientnet(check.data, check)
    assert check.finish(), lines
    assert sum("SKIPPED" in line for line in lines) == 1, lines


# --- training


def test_training_normalises_with_the_batch_and_moves_the_statistics():
    state, x = filled(torch_shapes(CUT)), images(3, 29, 22)
    reference = Reference(state, training=True)
    theirs = reference.trunk(channels_first(x), CUT)
    out, stats = compiled(training=True)(converted(state), x)
    close(channels_first(out), theirs, 1e-4)
    moved = {}
    for name, (mean, var) in reference.moved.items():
        moved |= {name + ".running_mean": mean, name + ".running_var": var}
    expected = converted(state | moved)
    assert len(stats) == len(moved)
    for name, value in stats.items():
        close(value, expected[name], 1e-5)


def test_inference_leaves_the_statistics():
    flat = converted(filled(torch_shapes(CUT)))
    _, stats = compiled()(flat, images(2, 16, 16))
    for name, value in stats.items():
        np.testing.assert_array_equal(value, flat[name])


def test_statistics_are_those_of_all_devices():
    flat, x = converted(filled(torch_shapes(CUT))), images(4, 16, 24)
    whole, stats = compiled(training=True)(flat, x)
    on_each = jax.vmap(lambda x: run(flat, x, True, "devices"), axis_name="devices")
    halves, shared = jax.jit(on_each)(x.reshape(2, 2, *x.shape[1:]))
    close(halves.reshape(whole.shape), whole, 1e-4)
    for name, value in shared.items():
        close(value, np.stack([stats[name]] * 2), 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_all_forms_have_one_gradient(training, monkeypatch):
    block = Block(4, Stage(1, 3, 2, 2, 4), 2, None)
    rng = np.random.default_rng(0)
    flat = {n: rng.uniform(0.3, 1, s) for n, s in module_shapes(block, "").items()}
    flat = {n: v.astype(np.float32) for n, v in flat.items()}
    x, weight = (rng.standard_normal(s, np.float32) for s in ((2, 13, 9, 4), (2, 7, 5, 4)))
    stats = {n: v for n, v in flat.items() if n.endswith((".mean", ".var"))}
    params = {n: v for n, v in flat.items() if n not in stats}

    def loss(params, x):
        return (bind(block, params | stats)(x, training=training) * weight).sum()

    found = {}
    for name, (on_cpu, stripe) in FORMS.items():
        monkeypatch.setattr(module, "_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        monkeypatch.setattr(module, "STRIPE", stripe)
        # A function of its own for each, or jax would not look at the forms again.
        gradients = jax.jit(lambda *a: jax.grad(loss, argnums=(0, 1))(*a))
        found[name] = jax.tree.leaves(gradients(params, x))
    assert all(np.abs(leaf).max() > 0 for leaf in found["other backends"])
    for name in ("whole", "stripes"):
        for ours, theirs in zip(found[name], found["other backends"], strict=True):
            close(ours, theirs, 1e-4)


# --- names and sizes


def test_every_released_array_has_its_place():
    source, net = filled(policy_shapes()), Policy(CTS)
    wanted = module_shapes(net, "policy.")
    released = {"policy_net." + name: value for name, value in source.items()}
    flat = convert(released, policy_rules(r"policy_net\.", "policy."), wanted, "test")
    counters = sum(name.endswith("num_batches_tracked") for name in source)
    assert (len(source), len(flat)) == (290, 290 - counters)
    statistics = {n: v for n, v in flat.items() if n.endswith((".mean", ".var"))}
    assert sum(v.size for n, v in flat.items() if n not in statistics) == 2_959_490
    theirs = source["backbone.blocks.5.2.conv_dw.weight"]
    np.testing.assert_array_equal(
        flat["policy.trunk.stages.5.2.depthwise.kernel"][1, 4], theirs[:, 0, 1, 4]
    )


@pytest.mark.skipif(not SHARED.exists(), reason="the list of released names is not here")
def test_released_names():
    lines = (SHARED / "facts" / "keys_policynet.tsv").read_text().splitlines()
    ours = {n: "x".join(map(str, s)) or "scalar" for n, s in policy_shapes().items()}
    assert dict(line.split("\t") for line in lines) == ours


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.1.0.se.conv_reduce.weight": np.zeros((4, 8, 1, 1))}, "1 not understood"),
        ({"conv_head.weight": np.zeros((20, 12, 1, 1))}, "1 not understood"),
        ({"blocks.1.1.bn3.running_var": None}, "1 without a source"),
        ({"blocks.1.0.conv_dw.weight": np.zeros((16, 1, 3, 3))}, "1 of another shape"),
        ({"blocks.1.0.conv_dw.weight": np.zeros((16, 2, 5, 5))}, "of another shape"),
        ({"blocks.0.2.conv_dw.weight": np.zeros((8, 1, 3, 3))}, "1 unknown to the model"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    state = filled(torch_shapes(CUT)) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(UserError, match=said):
        converted(state)


def test_timm_classifier_gives_its_trunk():
    more = {"conv_head.weight": (1280, 12, 1, 1), "bn2.weight": (1280,), "classifier.bias": (1000,)}
    state, net = filled(torch_shapes(CUT) | more), EfficientNetLite0(stages=CUT)
    flat = convert(state, timm_trunk_rules("trunk."), module_shapes(net, "trunk."), "test")
    np.testing.assert_array_equal(flat["trunk.stem_norm.scale"], state["bn1.weight"])


@pytest.mark.parametrize(
    ("side", "gmacs"), [(480, 1.67), (512, 1.90), (640, 2.97), (768, 4.28), (1024, 7.60)]
)
def test_macs(side, gmacs):
    assert efficientnet_macs((side, side)).total == pytest.approx(gmacs * 1e9, abs=5e6)


def test_macs_of_an_odd_size():
    """A map of one pixel stays one pixel: every kernel is used once."""
    kernels = sum(int(np.prod(s)) for s in torch_shapes(LITE0).values() if len(s) == 4)
    assert efficientnet_macs((1, 1)).total == kernels
