"""Self-attention over the tokens of an image: the only file that picks a kernel.

On a CPU the stock form (scores of all heads and images at once) is bound by memory traffic.
`_tiled` walks over (image, head) pairs instead, so that one [T, T] score matrix lives in the cache,
and recomputes it in the backward pass. `docs/performance.md` has the measured ratio.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "B T h d"], k: Float[Array, "B T h d"], v: Float[Array, "B T h d"]
) -> Float[Array, "B T h d"]:
    """softmax(q k^T / sqrt(d)) v for every image and head; all tokens see each other."""
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v)
    scale = q.shape[-1] ** -0.5
    out = _tiled(_pairs(q * scale), _pairs(k), _pairs(v))
    return out.reshape(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).swapaxes(1, 2)


def _pairs(x: Float[Array, "B T h d"]) -> Float[Array, "Bh T d"]:
    batch, tokens, heads, dim = x.shape
    return x.swapaxes(1, 2).reshape(batch * heads, tokens, dim)


@jax.custom_vjp
def _tiled(q, k, v):
    return _tiled_forward(q, k, v)[0]


def _tiled_forward(q, k, v):
    def one_pair(qkv):
        q, k, v = qkv
        scores = (q @ k.T).astype(jnp.float32)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = (weights.astype(v.dtype) @ v) / total.astype(v.dtype)
        return out, top + jnp.log(total)

    out, log_total = jax.lax.map(one_pair, (q, k, v))
    return out, (q, k, v, out, log_total)


def _tiled_backward(saved, grad):
    def one_pair(tile):
        q, k, v, out, log_total, grad = tile
        weights = jnp.exp((q @ k.T).astype(jnp.float32) - log_total)
        # d(scores) = weights * (grad v^T - <grad, out>): softmax's Jacobian, never stored
        centre = (grad * out).sum(axis=-1, keepdims=True)
        d_scores = (weights * ((grad @ v.T) - centre).astype(jnp.float32)).astype(q.dtype)
        # [d, T] here and transposed outside the loop: a product with a transposed [T, T] matrix is
        # up to twice as slow, most of all where T is a power of two.
        return d_scores @ k, q.T @ d_scores, grad.T @ weights.astype(v.dtype)

    d_q, d_k, d_v = jax.lax.map(one_pair, (*saved, grad))
    return d_q, d_k.swapaxes(1, 2), d_v.swapaxes(1, 2)


_tiled.defvjp(_tiled_forward, _tiled_backward)
