"""The layers that every network here is made of.

A module holds the shapes of its parameters, never numbers: `jaxseg.models.network.Network.bind`
puts numbers in and `jaxseg.models.initial` draws the first ones. So building a network is free.

A ``key`` of None means inference everywhere in `jaxseg.models`: nothing is dropped and batch
normalisation uses its running statistics.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key


def parameter(*shape: int) -> nnx.Param:
    """A float32 parameter without its numbers."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class Linear(nnx.Module):
    """x kernel + bias, as one matrix product over all leading axes.

    On [B, T, D] XLA's CPU backend transposes the whole gradient before the weight gradient; on
    [B T, D] it does not, which makes a training step of the layer 2.5 times faster there.
    """

    def __init__(self, fan_in: int, fan_out: int):
        self.kernel = parameter(fan_in, fan_out)
        self.bias = parameter(fan_out)

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...] + self.bias[...]
        return y.reshape(*x.shape[:-1], y.shape[-1])


class LayerNorm(nnx.Module):
    """Normalise the last axis; statistics in float32.

    On one flat matrix, like `Linear`: XLA's CPU backend reduces a leading axis of 1 badly.
    """

    def __init__(self, width: int, epsilon: float):
        self.scale = parameter(width)
        self.bias = parameter(width)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        wide = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)
        return (y * self.scale[...] + self.bias[...]).reshape(x.shape)


class Conv(nnx.Module):
    """Same-size convolution without bias; kernel [k, k, in, out].

    A 1x1 kernel works on every token by itself, wherever it lies.
    """

    def __init__(self, fan_in: int, fan_out: int, size: int):
        self.kernel = parameter(size, size, fan_in, fan_out)

    def __call__(self, x: Float[Array, "*n C"]) -> Float[Array, "*n F"]:
        kernel = self.kernel[...]
        if kernel.shape[:2] == (1, 1):
            return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


class BatchNorm(nnx.Module):
    """Batch normalisation over all but the last axis, with torch's epsilon and momentum.

    In training the statistics are those of all devices along ``batch_axis`` (SyncBN) and the
    running ones move by a tenth; the mutation stays inside the step, which returns them.
    """

    def __init__(self, width: int, batch_axis: str | None):
        self.scale = parameter(width)
        self.bias = parameter(width)
        self.mean = nnx.BatchStat(jax.ShapeDtypeStruct((width,), jnp.float32))
        self.var = nnx.BatchStat(jax.ShapeDtypeStruct((width,), jnp.float32))
        self.batch_axis = batch_axis

    def __call__(
        self,
        x: Float[Array, "*n C"],
        *,
        training: bool,
        valid: Bool[Array, "*n"] | None = None,
    ) -> Float[Array, "*n C"]:
        """``valid``: the entries that the statistics are taken over; None: all."""
        mean, var = self.mean[...], self.var[...]
        if training:
            wide = x.astype(jnp.float32).reshape(-1, x.shape[-1])
            weight = jnp.ones(len(wide)) if valid is None else valid.reshape(-1).astype(jnp.float32)
            count = self._over_devices(weight.sum())
            mean = self._over_devices(weight @ wide) / jnp.maximum(count, 1.0)
            var = self._over_devices(weight @ jnp.square(wide - mean)) / jnp.maximum(count, 1.0)
            unbiased = var * (count / jnp.maximum(count - 1.0, 1.0))
            # Not [...] = : that would write into the caller's array where it is one of numpy.
            self.mean.set_value(0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean))
            self.var.set_value(0.9 * self.var[...] + 0.1 * jax.lax.stop_gradient(unbiased))
        y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + 1e-5)
        return y.astype(x.dtype) * self.scale[...] + self.bias[...]

    def _over_devices(self, total: Float[Array, "*c"]) -> Float[Array, "*c"]:
        return total if self.batch_axis is None else jax.lax.psum(total, self.batch_axis)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), through erf as torch computes it.

    `jax.nn.gelu` goes through erfc, whose two-branch polynomial is evaluated three times in a
    training step on a CPU; here it is one erf per direction.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 * (1.0 + jax.lax.erf(x * 2**-0.5))


def _gelu_backward(x, grad):
    density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def subkeys(key: Key[Array, ""] | None, count: int):
    """``count`` independent keys, or ``count`` times None at inference."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zero each entry with probability ``rate`` and rescale the rest."""
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key, x.shape)


def drop_path(x: Float[Array, "B ..."], rate: float, key: Key[Array, ""] | None) -> Array:
    """Zero a branch per image with probability ``rate`` (stochastic depth); rescale the rest."""
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x, rate, key, mask_shape):
    keep = jax.random.bernoulli(key, 1.0 - rate, mask_shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))
