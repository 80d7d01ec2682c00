"""Attention over the living tokens of each image: the only file that picks a kernel.

Self-attention (`attend`), attention of class queries (`attend_queries`; `attend_memory` where they
are few) and their bare scores (`query_scores`), what a class token pays to the others
(`class_attention`), each for both layouts of `jaxseg.tokens`. An image without living tokens gets
zeros.

On a CPU the stock form (scores of all heads and images at once) is bound by memory traffic.
`_tiled` walks over (image, head) pairs instead, so that one [T, T] score matrix lives in the cache,
and recomputes it in the backward pass; packed tokens take the same walk in windows near the length
of each image (`jaxseg.runs`). Elsewhere the stock attention is used, packed tokens padded to rows
for it, with their lengths: right, but no accelerator has been measured. `docs/performance.md` has
the ratios that were.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.runs import map_runs
from jaxseg.tokens import Layout, Packed, Rows

Drop = Callable[[Array], Array]  # zeroes some of the attention weights and rescales the rest
_TINY = 1e-30


def attend(
    q: Float[Array, "*slots h d"],
    k: Float[Array, "*slots h d"],
    v: Float[Array, "*slots h d"],
    layout: Layout,
    drop: Drop | None = None,
) -> Float[Array, "*slots h d"]:
    """softmax(q k^T / sqrt(d)) v for every image and head; the dead are no keys.

    ``drop`` acts on the attention weights [B, h, T, T] (training only, hence rows only).
    """
    if drop is not None:
        return _stock(q * q.shape[-1] ** -0.5, k, v, layout.valid, drop)
    on_cpu = jax.default_backend() == "cpu"
    if isinstance(layout, Rows) and layout.policy is not None:
        return _by_policy(q, k, v, layout.policy)
    if isinstance(layout, Packed):
        return _packed(q, k, v, layout) if on_cpu else _padded(q, k, v, layout)
    if not on_cpu:
        mask = None if layout.valid is None else layout.valid[:, None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    valid = None if layout.valid is None else jnp.repeat(layout.valid, q.shape[2], axis=0)
    out = _tiled(_pairs(q * q.shape[-1] ** -0.5), _pairs(k), _pairs(v), valid)
    return out.reshape(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).swapaxes(1, 2)


def attend_queries(
    q: Float[Array, "B K h d"],
    k: Float[Array, "*slots h d"],
    v: Float[Array, "*slots h d"],
    layout: Layout,
    drop: Drop | None = None,
) -> Float[Array, "B K h d"]:
    """What the queries of each image gather from its patches; class tokens are not looked at.

    ``drop`` acts on the attention weights (training only).
    """
    q = q * q.shape[-1] ** -0.5
    if _alone(layout, drop):
        return _image_by_image(_gather_for_image, (k, v), q, layout)
    return _stock(q, k, v, _patches_of(k, layout), drop)


def _alone(layout: Layout, drop: Drop | None) -> bool:
    """Whether queries look image by image: packed ones must, and on a CPU the scores of one image
    stay in the cache."""
    return isinstance(layout, Packed) or (drop is None and jax.default_backend() == "cpu")


def _image_by_image(of_image: Callable, rows: tuple[Array, ...], q: Array, layout: Layout):
    """``of_image(*rows, q, valid) -> (None, result)`` of the patches of each image."""
    if isinstance(layout, Packed):
        start, count = layout.start + layout.prefix, layout.count - layout.prefix
        return map_runs(of_image, start, count, rows, (q,), layout.lengths)[1]
    valid = _patches_of(rows[0], layout)
    return jax.lax.map(lambda image: of_image(*image)[1], (*rows, q, valid))


def _patches_of(x: Array, layout: Rows) -> Bool[Array, "B C"] | None:
    """Living slots that are no class token; None: all."""
    return layout.patches(x) if layout.valid is not None or layout.prefix > 0 else None


def _stock(q, k, v, valid, drop):
    """The scores of all images at once; the scale is already in q."""
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k)
    weights = _softmax(scores, None if valid is None else valid[:, None, None])
    return jnp.einsum("bhqk,bkhc->bqhc", weights if drop is None else drop(weights), v)


def _gather_for_image(k, v, q, valid):
    scores = jnp.einsum("qhc,khc->hqk", q, k).astype(jnp.float32)
    seen = scores if valid is None else jnp.where(valid, scores, -1e30)
    weights = _weights(seen, seen.max(axis=-1, keepdims=True), valid)
    total = jnp.maximum(weights.sum(axis=-1), _TINY).T[..., None]
    # Divided afterwards: one pass less over the largest array.
    return None, jnp.einsum("hqk,khc->qhc", weights.astype(v.dtype), v) / total.astype(v.dtype)


def attend_memory(
    q: Float[Array, "B K h D"],
    memory: Float[Array, "*slots D"],
    layout: Layout,
    drop: Drop | None = None,
) -> tuple[Float[Array, "B K h D"], Float[Array, "B K h"]]:
    """`attend_queries` where the memory itself is key and value of every head, and q is scaled.

    Also what the attention weights add up to: 1, but 0 where nobody lives, and any number under
    ``drop``.
    """
    if _alone(layout, drop):
        return _image_by_image(_remember_image, (memory,), q, layout)
    valid = _patches_of(memory, layout)
    weights = jnp.einsum("bqhc,bkc->bhqk", q, memory)
    weights = _softmax(weights, None if valid is None else valid[:, None, None])
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("bhqk,bkc->bqhc", weights, memory), weights.sum(axis=-1).swapaxes(1, 2)


def _remember_image(memory, q, valid):
    """One image: its queries of all heads are the rows of two plain matrix products."""
    rows = q.reshape(-1, q.shape[-1])
    scores = (rows @ memory.T).astype(jnp.float32)
    seen = scores if valid is None else jnp.where(valid, scores, -1e30)
    weights = _weights(seen, seen.max(axis=-1, keepdims=True), valid)
    total = weights.sum(axis=-1, keepdims=True)
    out = (weights.astype(q.dtype) @ memory) / jnp.maximum(total, _TINY).astype(q.dtype)
    return None, (out.reshape(q.shape), (total > 0).astype(q.dtype).reshape(q.shape[:-1]))


def class_attention(
    q: Float[Array, "*slots h d"], k: Float[Array, "*slots h d"], layout: Layout
) -> Float[Array, "*slots h"]:
    """What the first slot of an image, its class token, pays to each of its slots; float32.

    One row of every attention matrix, computed for itself. The dead get 0.
    """
    if isinstance(layout, Packed):
        image, slots = layout.image(len(k)), jnp.arange(len(k))
        first = q[layout.start] * k.shape[-1] ** -0.5
        scores = (first[image] * k).sum(-1).astype(jnp.float32)
        alive = (slots < layout.used)[:, None]
        seen = jnp.where(alive, scores, -1e30)
        of_image = jnp.full((len(layout.start), k.shape[1]), -1e30)
        weights = _weights(seen, of_image.at[image].max(seen)[image], alive)
        return weights / jnp.zeros_like(of_image).at[image].add(weights)[image]
    scores = jnp.einsum("bhd,bkhd->bkh", q[:, 0] * k.shape[-1] ** -0.5, k).astype(jnp.float32)
    alive = None if layout.valid is None else layout.valid[:, None]
    return _softmax(scores.swapaxes(1, 2), alive).swapaxes(1, 2)


def query_scores(
    q: Float[Array, "B K D"], k: Float[Array, "*slots D"], layout: Layout
) -> Float[Array, "*slots K"]:
    """q k^T of every slot with the queries of its image."""
    if isinstance(layout, Packed):
        of_image = lambda k, q, valid: (k @ q.T, None)  # noqa: E731
        scores, _ = map_runs(of_image, layout.start, layout.count, (k,), (q,), layout.lengths)
        return scores
    return jnp.einsum("bnd,bkd->bnk", k, q)


def _softmax(scores: Float[Array, "*n k"], valid: Bool[Array, "*n k"] | None) -> Array:
    """Over the valid entries; zeros where there are none."""
    if valid is None:
        return jax.nn.softmax(scores, axis=-1)
    wide = jnp.where(valid, scores.astype(jnp.float32), -1e30)
    weights = jnp.where(valid, jnp.exp(wide - wide.max(axis=-1, keepdims=True)), 0.0)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), _TINY)
    return (weights / total).astype(scores.dtype)


def _packed(q, k, v, layout: Packed):
    """Every (head, image) pair is a run in a buffer of all heads, one head after the other."""
    slots, heads, dim = q.shape
    flat = [x.swapaxes(0, 1).reshape(heads * slots, dim) for x in (q * dim**-0.5, k, v)]
    start = (jnp.arange(heads)[:, None] * slots + layout.start).reshape(-1)
    count = jnp.tile(layout.count, heads)
    out, _ = map_runs(
        lambda q, k, v, valid: (_one_pair((q, k, v, valid))[0], None),
        start,
        count,
        tuple(flat),
        (),
        layout.lengths,
    )
    return out.reshape(heads, slots, dim).swapaxes(0, 1)


def _by_policy(q, k, v, policy: Float[Array, "B C"]):
    """Keys weigh what the policy says, but everybody sees itself (DynamicViT, "attention masking").

    The gradient reaches the policy. The constant 1e-6 is that of the released code.
    """
    slots = q.shape[1]
    themselves = jnp.eye(slots, dtype=jnp.float32)
    weigh = jnp.repeat(policy.astype(jnp.float32), q.shape[2], axis=0)

    @jax.checkpoint  # the [T, T] matrices of one pair at a time, backwards too
    def one_pair(pair):
        q, k, v, weigh = pair
        scores = (q @ k.T).astype(jnp.float32)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        weights *= weigh + (1.0 - weigh) * themselves
        total = weights.sum(axis=-1, keepdims=True)
        return ((weights + 1e-6 / slots) / (total + 1e-6)).astype(v.dtype) @ v

    pairs = (_pairs(q * q.shape[-1] ** -0.5), _pairs(k), _pairs(v), weigh)
    out = jax.lax.map(one_pair, pairs)
    return out.reshape(q.shape[0], q.shape[2], slots, q.shape[3]).swapaxes(1, 2)


def _padded(q, k, v, layout: Packed):
    """One row per image as long as the longest window, attention by lengths, and back."""
    slots, longest = len(q), layout.lengths[-1]
    at = jnp.minimum(layout.start[:, None] + jnp.arange(longest), slots - 1)
    out = jax.nn.dot_product_attention(
        q[at],
        k[at],
        v[at],
        query_seq_lengths=layout.count,
        key_value_seq_lengths=layout.count,
    )
    image = layout.image(slots)
    return out[image, jnp.minimum(jnp.arange(slots) - layout.start[image], longest - 1)]


def _pairs(x: Float[Array, "B T h d"]) -> Float[Array, "Bh T d"]:
    batch, tokens, heads, dim = x.shape
    return x.swapaxes(1, 2).reshape(batch * heads, tokens, dim)


@jax.custom_vjp
def _tiled(q, k, v, valid):
    return _tiled_forward(q, k, v, valid)[0]


def _weights(scores, log_scale, valid):
    """exp(scores - log_scale) of the valid keys, float32."""
    weights = jnp.exp(scores - log_scale)
    return weights if valid is None else jnp.where(valid, weights, 0.0)


def _one_pair(pair):
    q, k, v, valid = pair
    scores = (q @ k.T).astype(jnp.float32)
    seen = scores if valid is None else jnp.where(valid, scores, -1e30)
    top = seen.max(axis=-1, keepdims=True)
    weights = _weights(seen, top, valid)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), _TINY)
    out = (weights.astype(v.dtype) @ v) / total.astype(v.dtype)
    return out, top + jnp.log(total)


def _tiled_forward(q, k, v, valid):
    out, log_total = jax.lax.map(_one_pair, (q, k, v, valid))
    return out, (q, k, v, valid, out, log_total)


def _tiled_backward(saved, grad):
    def one_pair(tile):
        q, k, v, valid, out, log_total, grad = tile
        scores = (q @ k.T).astype(jnp.float32)
        seen = scores if valid is None else jnp.where(valid, scores, -1e30)
        weights = _weights(seen, log_total, valid)
        # d(scores) = weights * (grad v^T - <grad, out>): softmax's Jacobian, never stored
        centre = (grad * out).sum(axis=-1, keepdims=True)
        d_scores = (weights * ((grad @ v.T) - centre).astype(jnp.float32)).astype(q.dtype)
        # [d, T] here and transposed outside the loop: a product with a transposed [T, T] matrix is
        # up to twice as slow, most of all where T is a power of two.
        return d_scores @ k, q.T @ d_scores, grad.T @ weights.astype(v.dtype)

    d_q, d_k, d_v = jax.lax.map(one_pair, (*saved, grad))
    return d_q, d_k.swapaxes(1, 2), d_v.swapaxes(1, 2), None


_tiled.defvjp(_tiled_forward, _tiled_backward)
