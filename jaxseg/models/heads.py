"""What turns tokens into class scores of pixels, one class per published head.

A head reads the token matrices after some blocks and returns its logits at token resolution; from
these it gives pixel scores for evaluation (argmax = label) and its loss terms for training.
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

Grid = tuple[int, int]


class AtmLogits(NamedTuple):
    """``mask`` before the sigmoid and ``classes`` before the softmax over C."""

    mask: Float[Array, "B r c K"]
    classes: Float[Array, "B K C"]


class AtmHead(nnx.Module):
    """DToP's decoupled ATM head ("PruneHead"): one tap, own queries, classes present or absent."""

    def __init__(self, token_width: int, spec: AtmSpec):
        self.queries = parameter(spec.classes, spec.width)
        self.decoder = AtmDecoder(token_width, spec)
        self.class_embed = Linear(spec.width, 2)

    def __call__(
        self, taps: tuple[Float[Array, "B N D"]], grid: Grid, *, key: Key[Array, ""] | None = None
    ) -> AtmLogits:
        (tokens,) = taps
        queries, mask = self.decoder(for_batch(self.queries, tokens), tokens, key=key)
        return AtmLogits(_on_grid(mask, grid), self.class_embed(queries))

    def token_scores(self, logits: AtmLogits) -> Float[Array, "B r c K"]:
        """P(class present) x sigmoid(mask), per token; not normalised over classes."""
        present = jax.nn.softmax(logits.classes.astype(jnp.float32))[..., 0]
        return present[:, None, None] * jax.nn.sigmoid(logits.mask.astype(jnp.float32))

    def pixel_scores(self, logits: AtmLogits, size: Grid) -> Float[Array, "B H W K"]:
        """Probabilities are combined at token resolution, then interpolated."""
        return resize_bilinear(self.token_scores(logits), size)

    def losses(self, logits: AtmLogits, labels: UInt8[Array, "B H W"]) -> dict[str, Term]:
        present = losses.present_classes(labels, logits.mask.shape[-1])
        masks = _class_maps(logits.mask, labels.shape[1:])
        return {
            "loss_ce": losses.presence_term(logits.classes, present),
            **losses.mask_terms(masks, labels),
        }


class CascadeHead(nnx.Module):
    """SegViT v1: one decoder per tap, deepest first; queries pass on and mask logits add up."""

    def __init__(self, token_width: int, spec: AtmSpec, levels: int):
        self.queries = parameter(spec.classes, spec.width)
        self.decoders = nnx.List([AtmDecoder(token_width, spec) for _ in range(levels)])
        self.class_embed = Linear(spec.width, spec.classes + 1)

    def __call__(
        self,
        taps: tuple[Float[Array, "B N D"], ...],
        grid: Grid,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[AtmLogits, ...]:
        """Taps in the order of the blocks; one `AtmLogits` per level, the last is the answer."""
        queries, mask, levels = for_batch(self.queries, taps[0]), 0.0, []
        keys = subkeys(key, len(taps))
        for decoder, tokens, level_key in zip(self.decoders, taps[::-1], keys, strict=True):
            queries, scores = decoder(queries, tokens, key=level_key)
            mask = mask + scores
            levels.append(AtmLogits(_on_grid(mask, grid), self.class_embed(queries)))
        return tuple(levels)

    def pixel_scores(self, logits: tuple[AtmLogits, ...], size: Grid) -> Float[Array, "B H W K"]:
        """Mask logits are interpolated first; then every query votes for every class."""
        mask, classes = logits[-1]
        mask = jax.nn.sigmoid(resize_bilinear(mask.astype(jnp.float32), size))
        votes = jax.nn.softmax(classes.astype(jnp.float32))[..., :-1]
        return jnp.einsum("bhwq,bqk->bhwk", mask, votes)

    def losses(
        self, logits: tuple[AtmLogits, ...], labels: UInt8[Array, "B H W"]
    ) -> dict[str, Term]:
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


class ConvHead(nnx.Module):
    """SETR-naive (1x1 convolutions), SETR-PUP (3x3, x2 each) and FCN (no norm, no up-sampling)."""

    def __init__(self, token_width: int, spec: ConvSpec, batch_axis: str | None):
        self.spec = spec
        if spec.norm:
            self.norm = LayerNorm(token_width, 1e-6)
        widths = [token_width] + [spec.channels] * spec.convs
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convs = nnx.List([Conv(i, o, spec.kernel) for i, o in pairs])
        self.bns = nnx.List([BatchNorm(spec.channels, batch_axis) for _ in range(spec.convs)])
        self.classify = Linear(spec.channels, spec.classes)

    def __call__(
        self, taps: tuple[Float[Array, "B N D"]], grid: Grid, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B r c K"]:
        (tokens,) = taps
        x = _on_grid(self.norm(tokens) if self.spec.norm else tokens, grid)
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = jax.nn.relu(bn(conv(x), training=key is not None))
            if self.spec.up_scale > 1:
                up = self.spec.up_scale
                x = resize_bilinear(x, (x.shape[1] * up, x.shape[2] * up))
        return self.classify(x)

    def pixel_scores(self, logits: Float[Array, "B r c K"], size: Grid) -> Float[Array, "B H W K"]:
        return resize_bilinear(logits.astype(jnp.float32), size)

    def losses(
        self, logits: Float[Array, "B r c K"], labels: UInt8[Array, "B H W"]
    ) -> dict[str, Term]:
        full = self.pixel_scores(logits, labels.shape[1:])
        return {"loss_ce": losses.pixel_cross_entropy(full, labels, self.spec.weight)}


Head = AtmHead | CascadeHead | ConvHead


def _on_grid(x: Float[Array, "B N F"], grid: Grid) -> Float[Array, "B r c F"]:
    return x.reshape(x.shape[0], *grid, x.shape[-1])


def _class_maps(mask: Float[Array, "B r c K"], size: Grid) -> Float[Array, "B K H W"]:
    return jnp.moveaxis(resize_bilinear(mask.astype(jnp.float32), size), -1, 1)
