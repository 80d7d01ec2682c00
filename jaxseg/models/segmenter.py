"""A ViT with one or more heads, and the bridge from modules to plain dicts of arrays."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxseg.losses import Term
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import AtmHead, CascadeHead, ConvHead, ConvSpec, Head
from jaxseg.models.layers import subkeys
from jaxseg.models.vit import ViT, ViTSpec

Arrays = dict[str, jax.Array]  # dotted name -> array


@dataclass(frozen=True)
class HeadSpec:
    """A head and the blocks (0-based) it reads. ATM with several taps is SegViT's cascade."""

    taps: tuple[int, ...]
    sizes: AtmSpec | ConvSpec


@dataclass(frozen=True)
class SegmenterSpec:
    """Heads in the order of depth: the last one answers, the others are auxiliary."""

    vit: ViTSpec
    heads: tuple[HeadSpec, ...]

    @property
    def classes(self) -> int:
        return self.heads[-1].sizes.classes


class Segmenter(nnx.Module):
    """Images in; logits, pixel scores or loss terms out. ``key`` None means inference."""

    def __init__(self, spec: SegmenterSpec, batch_axis: str | None = None):
        self.spec = spec
        self.vit = ViT(spec.vit)
        self.heads = nnx.List([_make_head(spec.vit.width, head, batch_axis) for head in spec.heads])

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        key: Key[Array, ""] | None = None,
        last_head_only: bool = False,
    ) -> list:
        """The logits of each head (of the last alone, as at inference without early exits)."""
        first = len(self.heads) - 1 if last_head_only else 0
        wanted = self.spec.heads[first:]
        vit_key, *head_keys = subkeys(key, 1 + len(wanted))
        taps = tuple(sorted({tap for head in wanted for tap in head.taps}))
        tokens = self.vit(images, taps, key=vit_key)
        prefix = int(self.spec.vit.class_token)
        grid = self.vit.grid(*images.shape[1:3])
        return [
            head(tuple(tokens[tap][:, prefix:] for tap in spec.taps), grid, key=head_key)
            for head, spec, head_key in zip(
                list(self.heads)[first:], wanted, head_keys, strict=True
            )
        ]

    def pixel_scores(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H W K"]:
        """Scores of the last head at image size; their argmax is the label."""
        (logits,) = self(images, last_head_only=True)
        return self.scores_of(logits, images.shape[1:3])

    def scores_of(self, logits, size: tuple[int, int]) -> Float[Array, "B H W K"]:
        """Pixel scores from the last head's logits.

        A padded image is interpolated with its padding and then cut, so that cells keep their place
        (mmsegmentation stretches the padded grid over the unpadded image).
        """
        patch, (rows, columns) = self.spec.vit.patch, self.vit.grid(*size)
        padded = self.heads[-1].pixel_scores(logits, (rows * patch, columns * patch))
        return padded[:, : size[0], : size[1]]

    def losses(
        self,
        images: Float[Array, "B H W 3"],
        labels: UInt8[Array, "B H W"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Term]:
        """Loss terms of all heads, named ``aux_0.loss_ce`` ... ``decode.loss_ce``."""
        names = [f"aux_{i}" for i in range(len(self.heads) - 1)] + ["decode"]
        return {
            f"{name}.{term}": value
            for name, head, logits in zip(names, self.heads, self(images, key=key), strict=True)
            for term, value in head.losses(logits, labels).items()
        }


def _make_head(width: int, head: HeadSpec, batch_axis: str | None) -> Head:
    if isinstance(head.sizes, ConvSpec):
        return ConvHead(width, head.sizes, batch_axis)
    if len(head.taps) > 1:
        return CascadeHead(width, head.sizes, len(head.taps))
    return AtmHead(width, head.sizes)


@dataclass(frozen=True)
class Network:
    """A segmenter without its numbers: `bind` puts arrays in, inside or outside jit.

    The graph stays in a closure and plain dicts go through jit, because handing flax modules
    through jit costs milliseconds on every call.
    """

    spec: SegmenterSpec
    graph: nnx.GraphDef

    def bind(self, params: Arrays, stats: Arrays) -> Segmenter:
        return nnx.merge(self.graph, _nest(params), _nest(stats))

    def split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """(parameters, statistics) from one dict that holds both, as a weights file does."""
        stats = {n: v for n, v in arrays.items() if n.endswith((".mean", ".var"))}
        return {n: v for n, v in arrays.items() if n not in stats}, stats

    def scorer(self, *, bfloat16: bool):
        """``score(arrays, images float32[B,H,W,3]) -> float32[B,H,W,K]``: pixel scores, pure.

        ``arrays`` holds parameters and statistics in one dict.
        """

        def score(arrays, images):
            params, stats = self.split(arrays)
            if bfloat16:
                params = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
                images = images.astype(jnp.bfloat16)
            return self.bind(params, stats).pixel_scores(images)

        return score


def stats_of(model: Segmenter) -> Arrays:
    """Batch-normalisation statistics of a bound model (updated by a training forward pass)."""
    return _flatten(nnx.state(model, nnx.BatchStat))


def network(spec: SegmenterSpec, batch_axis: str | None = None) -> Network:
    """The network of ``spec``; ``batch_axis`` is where training shares batch statistics."""
    return Network(spec, nnx.split(Segmenter(spec, batch_axis), nnx.Param, nnx.BatchStat)[0])


def shapes(spec: SegmenterSpec) -> tuple[dict, dict]:
    """Parameters and statistics as `jax.ShapeDtypeStruct`s under their names."""
    model = Segmenter(spec)
    return _flatten(nnx.state(model, nnx.Param)), _flatten(nnx.state(model, nnx.BatchStat))


def _flatten(state: nnx.State) -> dict:
    nested = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): value for path, value in nested.items()}


def _nest(flat: dict) -> dict:
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): value
        for name, value in flat.items()
    }
    return nnx.traversals.unflatten_mapping(paths)
