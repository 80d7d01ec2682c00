"""Small pieces that every network here shares: dropout and drop path with explicit keys, initialisers.

A ``key`` of None means inference everywhere in `jaxseg.models`: nothing is dropped and batch
normalisation uses its running statistics.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key



class Linear(nnx.Linear):
    """A linear layer that runs as one matrix product over all leading axes.

    On [B, T, D] XLA's CPU backend transposes the whole gradient before the weight gradient; on
    [B T, D] it does not, which makes a training step of the layer 2.5 times faster there.
    """

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


# torch's trunc_normal_(std=0.02) cuts at +-2, which is 100 sigma: a plain normal.
normal_002 = jax.nn.initializers.normal(0.02)


def linear_002(fan_in: int, fan_out: int, rngs: nnx.Rngs) -> Linear:
    """Weights N(0, 0.02), biases 0: mmsegmentation's init_weights of a decode head."""
    return Linear(fan_in, fan_out, kernel_init=normal_002, rngs=rngs)


def linear_torch(fan_in: int, fan_out: int, rngs: nnx.Rngs) -> Linear:
    """torch.nn.Linear's own default: weights and biases U(-1, 1) / sqrt(fan_in)."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * fan_in**-0.5

    return Linear(fan_in, fan_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), through erf as torch computes it.

    `jax.nn.gelu` goes through erfc, whose two-branch polynomial is evaluated three times in a training
    step; with one erf per direction the MLP's training step takes 0.6 of the time on a CPU.
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
    """Zero the whole branch of an image with probability ``rate`` (stochastic depth, per sample)."""
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x, rate, key, mask_shape):
    keep = jax.random.bernoulli(key, 1.0 - rate, mask_shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))
