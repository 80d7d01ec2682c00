"""Layers against jax's own or numpy formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import bind
from flax import nnx

from jaxseg.models.layers import (
    BatchNorm,
    Conv,
    LayerNorm,
    Linear,
    drop_path,
    dropout,
    gelu,
    subkeys,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


# --- GELU


def test_gelu_is_the_exact_one():
    x = jnp.concatenate([jnp.linspace(-12, 12, 2001), jnp.array([-1e4, 0.0, 1e4])])
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert abs(float(gelu(jnp.float32(1.0))) - 0.8413447) < 1e-6  # the tanh form says 0.8411920


def test_gelu_gradient():
    x = jnp.concatenate([jnp.linspace(-12, 12, 2001), jnp.array([-1e4, 0.0, 1e4])])
    ours = jax.grad(lambda x: (gelu(x) * jnp.cos(x)).sum())(x)
    theirs = jax.grad(lambda x: (jax.nn.gelu(x, approximate=False) * jnp.cos(x)).sum())(x)
    np.testing.assert_allclose(ours[:-3], theirs[:-3], atol=3e-6)
    assert np.isfinite(ours).all()


def test_gelu_keeps_bfloat16():
    x = jnp.linspace(-3, 3, 64).astype(jnp.bfloat16)
    value, pull = jax.vjp(gelu, x)
    assert value.dtype == pull(value)[0].dtype == jnp.bfloat16


# --- dropping


def test_dropout_statistics():
    out = dropout(jnp.ones((400, 500)), 0.1, jax.random.key(0))
    values, counts = np.unique(out, return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / 0.9], rtol=1e-6)
    assert abs(counts[0] / out.size - 0.1) < 0.004  # six standard deviations
    assert 0 < (out == 0).any(axis=1).mean() and (out > 0).any(axis=1).all()  # entry by entry


def test_drop_path_drops_whole_images():
    out = np.asarray(drop_path(jnp.ones((2000, 3, 4)), 0.25, jax.random.key(0)))
    assert (out == out[:, :1, :1]).all()
    values, counts = np.unique(out[:, 0, 0], return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / 2000 - 0.25) < 0.06


@pytest.mark.parametrize("drop", [dropout, drop_path])
def test_nothing_drops_without_a_key_or_a_rate(drop):
    x = jnp.asarray(normal(4, 3))
    assert drop(x, 0.5, None) is x
    assert drop(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("drop", [dropout, drop_path])
def test_dropping_follows_its_key_and_keeps_the_dtype(drop):
    x = jnp.ones((64, 8), jnp.bfloat16)
    first, again, other = (drop(x, 0.5, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.dtype == jnp.bfloat16
    assert (first == again).all() and (first != other).any()


def test_subkeys():
    assert subkeys(None, 3) == [None] * 3
    keys = jax.random.key_data(jnp.stack(subkeys(jax.random.key(0), 3)))
    assert len(np.unique(keys, axis=0)) == 3


# --- linear, norms, convolution


def test_linear():
    kernel, bias, x = normal(5, 4), normal(4), normal(2, 3, 5)
    layer = bind(Linear(5, 4), {"kernel": kernel, "bias": bias})
    np.testing.assert_allclose(layer(x), np.einsum("bnd,df->bnf", x, kernel) + bias, atol=1e-5)
    assert layer(x[:0]).shape == (0, 3, 4)


def test_layer_norm():
    scale, bias = normal(6), normal(6)
    x = 1e-3 * normal(2, 3, 6) + 5.0  # a small spread shows the epsilon, the offset cancellation
    layer = bind(LayerNorm(6, 1e-6), {"scale": scale, "bias": bias})
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=2e-3)
    low = layer(jnp.asarray(x - 5.0))  # the same without the offset is exact to float32
    wide = (x - np.float32(5.0)).astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(low, expected, atol=1e-5)


def test_layer_norm_takes_its_statistics_in_float32():
    params = {"scale": jnp.ones(512, jnp.bfloat16), "bias": jnp.zeros(512, jnp.bfloat16)}
    layer = bind(LayerNorm(512, 1e-6), params)
    x = jnp.asarray(normal(4, 512) + 8.0).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    out = layer(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.02)


@pytest.mark.parametrize("size", [1, 3])
def test_conv_is_a_zero_padded_correlation(size):
    kernel, x = normal(size, size, 3, 4), normal(2, 5, 6, 3)
    ours = bind(Conv(3, 4, size), {"kernel": kernel})(jnp.asarray(x))
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    expected = np.zeros((2, 5, 6, 4), np.float32)
    for i in range(size):
        for j in range(size):
            expected += padded[:, i : i + 5, j : j + 6] @ kernel[i, j]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# --- batch normalisation

BN = {
    "scale": normal(4),
    "bias": normal(4),
    "mean": normal(4),
    "var": RNG.uniform(0.5, 2.0, 4).astype(np.float32),
}


def test_batch_norm_at_inference_uses_the_running_statistics():
    layer, x = bind(BatchNorm(4, None), BN), normal(2, 3, 3, 4)
    expected = (x - BN["mean"]) / np.sqrt(BN["var"] + 1e-5) * BN["scale"] + BN["bias"]
    np.testing.assert_allclose(layer(jnp.asarray(x), training=False), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], BN["mean"])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_in_training(offset):
    """Batch statistics (biased) normalise; the running variance is torch's unbiased one."""
    layer, x = bind(BatchNorm(4, None), BN), normal(2, 3, 3, 4) + np.float32(offset)
    out = layer(jnp.asarray(x), training=True)
    wide = x.astype(np.float64).reshape(-1, 4)
    expected = (x - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5) * BN["scale"] + BN["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5 if offset == 0 else 2e-3)
    np.testing.assert_allclose(layer.mean[...], 0.9 * BN["mean"] + 0.1 * wide.mean(0), rtol=1e-5)
    unbiased = wide.var(0, ddof=1)
    np.testing.assert_allclose(layer.var[...], 0.9 * BN["var"] + 0.1 * unbiased, rtol=1e-4)


def test_batch_norm_leaves_the_arrays_it_was_given():
    before = BN["mean"].copy()
    bind(BatchNorm(4, None), BN)(jnp.asarray(normal(3, 4)), training=True)
    np.testing.assert_array_equal(BN["mean"], before)


def test_batch_norm_of_one_value_stays_finite():
    layer = bind(BatchNorm(4, None), BN)
    out = layer(jnp.asarray(normal(1, 4)), training=True)
    np.testing.assert_allclose(out[0], BN["bias"], atol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 * BN["var"], rtol=1e-6)


def test_batch_norm_on_two_devices_is_that_of_the_joined_batch():
    assert jax.device_count() >= 2
    x, weight = normal(4, 3, 3, 4), jnp.asarray(normal(4, 3, 3, 4))

    def run(axis, x, weight):
        def loss(x):
            layer = bind(BatchNorm(4, axis), BN)
            out = layer(x, training=True)
            # The gradient of a sum over devices is that of the joined sum.
            return (out * weight).sum(), (out, layer.mean[...], layer.var[...])

        return jax.grad(loss, has_aux=True)(x)

    grad, (out, mean, var) = run(None, jnp.asarray(x), weight)
    halves = [jnp.asarray(a).reshape(2, 2, 3, 3, 4) for a in (x, weight)]
    split = jax.pmap(lambda x, w: run("batch", x, w), axis_name="batch", devices=jax.devices()[:2])
    grads, (outs, means, variances) = split(*halves)
    np.testing.assert_allclose(outs.reshape(x.shape), out, atol=1e-5)
    np.testing.assert_allclose(grads.reshape(x.shape), grad, atol=1e-4)
    for device in range(2):
        np.testing.assert_allclose(means[device], mean, atol=1e-6)
        np.testing.assert_allclose(variances[device], var, atol=1e-6)


def test_modules_hold_shapes_only():
    state = nnx.state(Linear(3, 5))
    assert isinstance(nnx.to_pure_dict(state)["kernel"], jax.ShapeDtypeStruct)
