"""Segmenter's mask transformer (Strudel et al., ICCV 2021, section 3.2).

Class tokens go through transformer blocks together with the tokens of the image; the mask logit of
a token and a class is the cosine between the two, normalised over the classes.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg import flops
from jaxseg.models.attention import attend, query_scores
from jaxseg.models.heads import Logits, SoftmaxHead
from jaxseg.models.layers import LayerNorm, Linear, dropout, gelu, parameter, subkeys
from jaxseg.models.vit import Block, ViTSpec
from jaxseg.tokens import Layout, Packed, Rows

DROPOUT = 0.1  # the released decoder drops at every place with this rate
EPSILON = 1e-5  # of all its layer norms, here and in mmsegmentation's form
_TINY = 1e-24  # a squared length below this is none


@dataclass(frozen=True)
class MaskSpec:
    """Sizes of a mask transformer; ``weight`` is that of its loss."""

    classes: int
    width: int
    heads: int
    layers: int = 2
    weight: float = 1.0


class MaskTransformerHead(SoftmaxHead):
    """One tap; pixels are classified by a softmax over the mask logits."""

    per_token = True

    def __init__(self, token_width: int, spec: MaskSpec):
        self.spec = spec
        self.input_proj = Linear(token_width, spec.width)
        self.class_tokens = parameter(spec.classes, spec.width)
        sizes = ViTSpec(spec.width, spec.layers, spec.heads, grid=(1, 1), epsilon=EPSILON)
        self.blocks = nnx.List([DroppingBlock(sizes, 0.0) for _ in range(spec.layers)])
        self.norm = LayerNorm(spec.width, EPSILON)
        self.patch_proj = parameter(spec.width, spec.width)
        self.class_proj = parameter(spec.width, spec.width)
        self.mask_norm = LayerNorm(spec.classes, EPSILON)

    def __call__(
        self,
        taps: tuple[Float[Array, "*slots D"]],
        layout: Layout,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        """Rows of dead slots and of the ViT's class token hold finite leftovers."""
        (tokens,) = taps
        x = self.input_proj(tokens)
        x, joint = join(x, self.class_tokens[...].astype(x.dtype), layout)
        for block, block_key in zip(self.blocks, subkeys(key, len(self.blocks)), strict=True):
            x = block(x, joint, key=block_key)
        slots, classes = part(self.norm(x), joint, layout)
        slots = _unit(slots @ self.patch_proj[...])
        classes = _unit(classes @ self.class_proj[...])
        return Logits(self.mask_norm(query_scores(classes, slots, layout)), None)


class DroppingBlock(Block):
    """The ViT's block; in training entries of the attention weights, of both branches and of the
    MLP's hidden values are dropped."""

    def __call__(
        self, x: Float[Array, "B T D"], layout: Layout, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        if key is None:
            return super().__call__(x, layout)
        drops = [functools.partial(dropout, rate=DROPOUT, key=one) for one in subkeys(key, 4)]
        heads = (3, self.attn.heads, x.shape[-1] // self.attn.heads)
        q, k, v = jnp.moveaxis(self.attn.qkv(self.norm1(x)).reshape(*x.shape[:-1], *heads), -3, 0)
        attended = attend(q, k, v, layout, drops[0]).reshape(x.shape)
        x = x + drops[1](self.attn.out(attended))
        hidden = drops[2](gelu(self.mlp.fc1(self.norm2(x))))
        return x + drops[3](self.mlp.fc2(hidden))


def join(
    tokens: Float[Array, "*slots D"], classes: Float[Array, "K D"], layout: Layout
) -> tuple[Float[Array, "*joint D"], Layout]:
    """The class tokens as the prefix of every image, instead of the ViT's own class token.

    The first image of a packed layout must start at slot 0. Only living patches and ``classes``
    are alive in the new layout.
    """
    count, prefix = len(classes), layout.prefix
    if isinstance(layout, Rows):
        first = jnp.broadcast_to(classes, (len(tokens), *classes.shape))
        valid = layout.valid
        if valid is not None:
            valid = jnp.pad(valid[:, prefix:], ((0, 0), (count, 0)), constant_values=True)
        return jnp.concatenate([first, tokens[:, prefix:]], axis=1), Rows(valid, count)
    more = count - prefix
    joint = Packed(
        layout.start + more * jnp.arange(len(layout.start)),
        layout.count + more,
        count,
        tuple(n + more for n in layout.lengths),
    )
    at = jnp.arange(len(tokens) + more * len(layout.start))
    image = joint.image(len(at))
    within = at - joint.start[image]
    source = jnp.where(within < count, len(tokens) + within, at - more * (image + 1))
    return jnp.concatenate([tokens, classes])[source], joint


def part(
    x: Float[Array, "*joint D"], joint: Layout, layout: Layout
) -> tuple[Float[Array, "*slots D"], Float[Array, "B K D"]]:
    """The inverse of `join`: what the slots and the class tokens of every image have become.

    At the ViT's own class token are rows of others.
    """
    count, more = joint.prefix, joint.prefix - layout.prefix
    if isinstance(layout, Rows):
        return x[:, more:], x[:, :count]
    slots = len(x) - more * len(layout.start)
    moved = jnp.arange(slots) + more * (layout.image(slots) + 1)
    return x[moved], x[joint.start[:, None] + jnp.arange(count)]


def _unit(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Rows of length 1; a row of zeros stays one, so that nothing becomes NaN."""
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).sum(axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, _TINY))).astype(x.dtype)


def mask_transformer_macs(
    tokens: float, token_width: int, width: int, classes: int, layers: int
) -> flops.Macs:
    """Of one image; ``tokens`` without the ViT's class token."""
    joint = tokens + classes
    blocks = flops.backbone(0, width, [(layers, joint)], final_norm=True)
    return flops.Macs(
        {
            "input projection": tokens * token_width * width,
            "decoder": blocks.total,
            "masks": joint * width**2 + tokens * classes * (width + 5),
        }
    )
