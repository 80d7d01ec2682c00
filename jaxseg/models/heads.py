"""What turns tokens into class scores, one class per published head.

A head reads the tokens after some blocks and returns `Logits`: one row per slot, wherever the slots
lie (`jaxseg.tokens`). The segmenter puts the rows on the grid of patches; from those the head gives
scores on the grid (bilinear interpolation makes them those of pixels) and its loss terms.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxseg import losses
from jaxseg.losses import Term
from jaxseg.models.atm import AtmDecoder, AtmSpec, for_batch
from jaxseg.models.layers import BatchNorm, Conv, LayerNorm, Linear, parameter, subkeys
from jaxseg.resize import resize_bilinear
from jaxseg.tokens import Layout, Packed

Grid = tuple[int, int]
_LEAST = 1e-6  # a score that becomes a logit again is kept this far from 0 and 1


class Logits(NamedTuple):
    """``mask``: a row per slot (on the grid: per patch), before the sigmoid or softmax.

    ``classes``: ATM's class logits per query, before the softmax over C; None for other heads.
    """

    mask: Float[Array, "*slots K"]
    classes: Float[Array, "B K C"] | None


class AtmHead(nnx.Module):
    """DToP's decoupled ATM head ("PruneHead"): one tap, own queries, classes present or absent."""

    per_token = True

    def __init__(self, token_width: int, spec: AtmSpec):
        self.queries = parameter(spec.classes, spec.width)
        self.decoder = AtmDecoder(token_width, spec)
        self.class_embed = Linear(spec.width, 2)

    def __call__(
        self,
        taps: tuple[Float[Array, "*slots D"]],
        layout: Layout,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        (tokens,) = taps
        queries = for_batch(self.queries, _batch(tokens, layout), tokens.dtype)
        queries, mask = self.decoder(queries, tokens, layout, key=key)
        return Logits(mask, self.class_embed(queries))

    def token_scores(self, logits: Logits, layout: Layout) -> Float[Array, "*slots K"]:
        """P(class present) x sigmoid(mask), per slot; not normalised over classes."""
        present = jax.nn.softmax(logits.classes.astype(jnp.float32))[..., 0]
        mask = logits.mask.astype(jnp.float32)
        return layout.of_image(present, mask) * jax.nn.sigmoid(mask)

    def as_mask(self, scores: Float[Array, "*slots K"]) -> Float[Array, "*slots K"]:
        """Mask logits of scores that another kind of head has given."""
        scores = jnp.clip(scores, _LEAST, 1 - _LEAST)
        return jnp.log(scores) - jnp.log1p(-scores)

    def grid_scores(self, logits: Logits, size: Grid) -> Float[Array, "B r c K"]:
        """Probabilities are combined on the grid, then interpolated."""
        del size
        present = jax.nn.softmax(logits.classes.astype(jnp.float32))[..., 0]
        return present[:, None, None] * jax.nn.sigmoid(logits.mask.astype(jnp.float32))

    def losses(self, logits: Logits, labels: UInt8[Array, "B H W"]) -> dict[str, Term]:
        present = losses.present_classes(labels, logits.mask.shape[-1])
        masks = _class_maps(logits.mask, labels.shape[1:])
        return {
            "loss_ce": losses.presence_term(logits.classes, present),
            **losses.mask_terms(masks, labels),
        }


class CascadeHead(nnx.Module):
    """SegViT v1: one decoder per tap, deepest first; queries pass on and mask logits add up."""

    per_token = True

    def __init__(self, token_width: int, spec: AtmSpec, levels: int):
        self.queries = parameter(spec.classes, spec.width)
        self.decoders = nnx.List([AtmDecoder(token_width, spec) for _ in range(levels)])
        self.class_embed = Linear(spec.width, spec.classes + 1)

    def __call__(
        self,
        taps: tuple[Float[Array, "*slots D"], ...],
        layout: Layout,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Logits, ...]:
        """Taps in the order of the blocks; one `Logits` per level, the last is the answer."""
        queries = for_batch(self.queries, _batch(taps[0], layout), taps[0].dtype)
        mask, levels, keys = 0.0, [], subkeys(key, len(taps))
        for decoder, tokens, level_key in zip(self.decoders, taps[::-1], keys, strict=True):
            queries, scores = decoder(queries, tokens, layout, key=level_key)
            mask = mask + scores
            levels.append(Logits(mask, self.class_embed(queries)))
        return tuple(levels)

    def grid_scores(self, logits: tuple[Logits, ...], size: Grid) -> Float[Array, "B H W K"]:
        """Those of pixels: masks are interpolated first, then every query votes for every class."""
        mask, classes = logits[-1]
        mask = jax.nn.sigmoid(resize_bilinear(mask.astype(jnp.float32), size))
        votes = jax.nn.softmax(classes.astype(jnp.float32))[..., :-1]
        return jnp.einsum("bhwq,bqk->bhwk", mask, votes)

    def losses(self, logits: tuple[Logits, ...], labels: UInt8[Array, "B H W"]) -> dict[str, Term]:
        present = losses.present_classes(labels, logits[-1].mask.shape[-1])
        terms = {}
        for i, level in enumerate(logits):
            suffix = "" if i == len(logits) - 1 else f"_{i}"
            of_level = {
                "loss_ce": losses.query_class_term(level.classes, present),
                **losses.mask_terms(_class_maps(level.mask, labels.shape[1:]), labels),
            }
            terms |= {name + suffix: term for name, term in of_level.items()}
        return terms


@dataclass(frozen=True)
class ConvSpec:
    """SETR's and FCN's head: [LN], then ``convs`` x (conv, BN, ReLU, bilinear x ``up_scale``)."""

    classes: int
    channels: int = 256
    convs: int = 1
    kernel: int = 1
    up_scale: int = 1
    norm: bool = True
    weight: float = 1.0  # of the loss; mmsegmentation gives auxiliary heads 0.4

    @property
    def at_tokens(self) -> bool:
        """Whether a token's logits depend on it alone, so that it may lie anywhere."""
        return self.kernel == 1 and (self.up_scale == 1 or self.convs <= 1)


class SoftmaxHead(nnx.Module):
    """A head whose mask logits go through a softmax over the classes; ``spec.weight`` is that of
    its loss."""

    def token_scores(self, logits: Logits, layout: Layout) -> Float[Array, "*slots K"]:
        """Softmax over the classes, per slot."""
        del layout
        return jax.nn.softmax(logits.mask.astype(jnp.float32))

    def as_mask(self, scores: Float[Array, "*slots K"]) -> Float[Array, "*slots K"]:
        """Logits of scores that another kind of head has given."""
        return jnp.log(jnp.maximum(scores, _LEAST))

    def grid_scores(self, logits: Logits, size: Grid) -> Float[Array, "B r c K"]:
        """The logits, interpolated as they are."""
        del size
        return logits.mask.astype(jnp.float32)

    def losses(self, logits: Logits, labels: UInt8[Array, "B H W"]) -> dict[str, Term]:
        full = pixel_scores(self, logits, labels.shape[1:])
        return {"loss_ce": losses.pixel_cross_entropy(full, labels, self.spec.weight)}


class ConvHead(SoftmaxHead):
    """SETR-naive (1x1 convolutions), SETR-PUP (3x3, x2 each) and FCN (no norm, no up-sampling).

    The last up-sampling comes after the classifier instead of before it: both are linear and the
    weights of a bilinear mean add up to one, so the numbers are the same and the map is smaller.
    """

    def __init__(self, token_width: int, spec: ConvSpec, batch_axis: str | None):
        self.spec = spec
        if spec.norm:
            self.norm = LayerNorm(token_width, 1e-6)
        widths = [token_width] + [spec.channels] * spec.convs
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convs = nnx.List([Conv(i, o, spec.kernel) for i, o in pairs])
        self.bns = nnx.List([BatchNorm(spec.channels, batch_axis) for _ in range(spec.convs)])
        self.classify = Linear(widths[-1], spec.classes)

    @property
    def per_token(self) -> bool:
        return self.spec.at_tokens

    def __call__(
        self,
        taps: tuple[Float[Array, "*slots D"]],
        layout: Layout,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        """Tokens [B, r, c, D] and logits [B, R, C, K] unless ``per_token``."""
        (x,) = taps
        valid = layout.patches(x) if self.per_token and _ragged(layout) else None
        x = self.norm(x) if self.spec.norm else x
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            x = self._up(x) if i else x
            x = jax.nn.relu(bn(conv(x), training=key is not None, valid=valid))
        return Logits(self.classify(x), None)

    def grid_scores(self, logits: Logits, size: Grid) -> Float[Array, "B R C K"]:
        """The logits, interpolated as they are; the last up-sampling is still to come."""
        mask = super().grid_scores(logits, size)
        return self._up(mask) if self.convs else mask

    def _up(self, x: Float[Array, "B r c F"]) -> Float[Array, "B R C F"]:
        up = self.spec.up_scale
        return x if up == 1 else resize_bilinear(x, (x.shape[1] * up, x.shape[2] * up))


Head = AtmHead | CascadeHead | SoftmaxHead


def pixel_scores(head: Head, logits, size: Grid) -> Float[Array, "B H W K"]:
    """Scores of every pixel from logits on the grid; their argmax is the label."""
    return resize_bilinear(head.grid_scores(logits, size), size)


def _batch(tokens: Array, layout: Layout) -> int:
    return len(layout.start) if isinstance(layout, Packed) else len(tokens)


def _ragged(layout: Layout) -> bool:
    """Whether some slots are no living patch."""
    return isinstance(layout, Packed) or layout.valid is not None or layout.prefix > 0


def _class_maps(mask: Float[Array, "B r c K"], size: Grid) -> Float[Array, "B K H W"]:
    return jnp.moveaxis(resize_bilinear(mask.astype(jnp.float32), size), -1, 1)
