"""Attention-to-mask (SegViT section 3): class queries look at the tokens of the image.

The scores of the last cross-attention, averaged over its heads, are the mask logits of each class.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.models.attention import attend_memory, attend_queries, query_scores
from jaxseg.models.layers import LayerNorm, Linear, dropout, subkeys
from jaxseg.tokens import Layout, Rows

DROPOUT = 0.1  # the released decoder drops at every place with this rate


@dataclass(frozen=True)
class AtmSpec:
    """Sizes of an ATM head: ``width`` of the class queries, attention heads, layers per decoder."""

    classes: int
    width: int
    heads: int
    layers: int = 3


class QueryAttention(nnx.Module):
    """Multi-head attention of queries to a memory that lies in ``layout``."""

    def __init__(self, width: int, heads: int):
        self.heads = heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)

    def __call__(
        self,
        queries: Float[Array, "B K d"],
        memory: Float[Array, "*slots d"],
        layout: Layout,
        *,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "B K d"]:
        """The attended queries."""
        drop = None if key is None else functools.partial(dropout, rate=DROPOUT, key=key)
        if self._few(queries) and memory is not queries:
            gathered = self._from_memory(self.q(queries), memory, layout, drop)
        else:
            q, k, v = map(self._split, (self.q(queries), self.k(memory), self.v(memory)))
            gathered = attend_queries(q, k, v, layout, drop)
        return self.out(gathered.reshape(queries.shape))

    def mask(
        self, queries: Float[Array, "B K d"], memory: Float[Array, "*slots d"], layout: Layout
    ) -> Float[Array, "*slots K"]:
        """The scaled scores before the softmax, averaged over heads.

        The mean over h heads of q_h k_h / sqrt(d / h) is q k / sqrt(h d): no head is split off.
        """
        q = self.q(queries) * (self.heads * queries.shape[-1]) ** -0.5
        if not self._few(queries):
            return query_scores(q, self.k(memory), layout)
        scores = query_scores(q @ self.k.kernel[...].T, memory, layout)
        return scores + layout.of_image(q @ self.k.bias[...], scores)

    def _few(self, queries: Float[Array, "B K d"]) -> bool:
        """Whether it is cheaper to take the queries to the memory than the memory to the queries:
        K x heads vectors meet every token there, instead of d of each kernel here."""
        return queries.shape[1] * self.heads < queries.shape[-1]

    def _from_memory(self, q, memory, layout, drop) -> Float[Array, "B K h c"]:
        """(q_h)(m W_h)^T = (q_h W_h^T) m^T: the kernels of keys and values meet queries alone.

        The same numbers in another order. The bias of keys adds as much to all scores of a query
        and drops out of the softmax.
        """
        q = self._split(q) * (q.shape[-1] // self.heads) ** -0.5
        of_keys, of_values = (self._split(part.kernel[...]) for part in (self.k, self.v))
        asked = jnp.einsum("bqhc,dhc->bqhd", q, of_keys)
        found, total = attend_memory(asked, memory, layout, drop)
        bias = total[..., None] * self._split(self.v.bias[...])
        return jnp.einsum("bqhd,dhc->bqhc", found, of_values) + bias

    def _split(self, x: Float[Array, "*n d"]) -> Float[Array, "*n h c"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class DecoderLayer(nnx.Module):
    """Post-norm: queries see each other, then the tokens, then a ReLU MLP.

    Returns the queries and what they were when they looked at the tokens.
    """

    def __init__(self, spec: AtmSpec):
        self.self_attn = QueryAttention(spec.width, spec.heads)
        self.cross_attn = QueryAttention(spec.width, spec.heads)
        self.fc1 = Linear(spec.width, 4 * spec.width)
        self.fc2 = Linear(4 * spec.width, spec.width)
        self.norm1 = LayerNorm(spec.width, 1e-5)
        self.norm2 = LayerNorm(spec.width, 1e-5)
        self.norm3 = LayerNorm(spec.width, 1e-5)

    def __call__(self, queries, memory, layout, *, key):
        keys = subkeys(key, 6)
        attended = self.self_attn(queries, queries, Rows(None, prefix=0), key=keys[0])
        asking = self.norm1(queries + dropout(attended, DROPOUT, keys[1]))
        attended = self.cross_attn(asking, memory, layout, key=keys[2])
        queries = self.norm2(asking + dropout(attended, DROPOUT, keys[3]))
        hidden = dropout(jax.nn.relu(self.fc1(queries)), DROPOUT, keys[4])
        return self.norm3(queries + dropout(self.fc2(hidden), DROPOUT, keys[5])), asking


class AtmDecoder(nnx.Module):
    """Project the tokens, then run the queries through the layers (no final norm)."""

    def __init__(self, token_width: int, spec: AtmSpec):
        self.input_proj = Linear(token_width, spec.width)
        self.input_norm = LayerNorm(spec.width, 1e-5)
        self.layers = nnx.List([DecoderLayer(spec) for _ in range(spec.layers)])

    def __call__(
        self,
        queries: Float[Array, "B K d"],
        tokens: Float[Array, "*slots D"],
        layout: Layout,
        *,
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "B K d"], Float[Array, "*slots K"]]:
        """Updated queries and the mask logits of every token for every class."""
        memory = self.input_norm(self.input_proj(tokens))
        for layer, layer_key in zip(self.layers, subkeys(key, len(self.layers)), strict=True):
            queries, asking = layer(queries, memory, layout, key=layer_key)
        return queries, self.layers[-1].cross_attn.mask(asking, memory, layout)


def for_batch(table: nnx.Param, batch: int, dtype: jnp.dtype) -> Float[Array, "B K d"]:
    """The query table once per image."""
    return jnp.broadcast_to(table[...], (batch, *table.shape)).astype(dtype)
