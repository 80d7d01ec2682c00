"""The segmenter of a configuration."""

from dataclasses import replace

from ml_collections import ConfigDict

from jaxseg.build.checks import one_of
from jaxseg.build.method import choosing, exits, merge
from jaxseg.errors import UserError
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.mask_transformer import MaskSpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViTSpec

HEADS = ("atm", "cascade", "conv", "mask_transformer")
Sizes = AtmSpec | ConvSpec | MaskSpec


def segmenter_spec(config: ConfigDict, classes: int) -> SegmenterSpec:
    """The network for ``classes`` classes."""
    model = config.model
    one_of("model.variant", model.variant, tuple(VARIANTS))
    one_of("model.head", model.head, HEADS)
    width, depth, heads = VARIANTS[model.variant]
    if tuple(sorted(set(model.taps))) != tuple(model.taps) or not model.taps:
        raise UserError(f"model.taps={model.taps}: name blocks once each, in rising order")
    if model.taps[-1] >= depth or model.taps[0] < 0:
        raise UserError(f"model.taps={model.taps}: ViT-{model.variant} has blocks 0 to {depth - 1}")
    patch = model.patch
    vit = ViTSpec(
        width=width,
        depth=depth,
        heads=heads,
        grid=(-(-config.data.crop[0] // patch), -(-config.data.crop[1] // patch)),
        patch=patch,
        class_token=model.class_token,
        final_norm=model.final_norm,
        drop_path=model.drop_path,
        epsilon=model.norm_epsilon,
    )
    decisions = exits(config)
    if model.head == "cascade":
        if decisions:
            raise UserError(
                "config.model.head='cascade' reads all taps at once, so that nobody can leave "
                "early: use atm or conv, or config.method.name=dense"
            )
        heads = (HeadSpec(tuple(model.taps), _atm(model, classes)),)
        return choosing(config, SegmenterSpec(vit, heads, merge=merge(config, heads)))
    sizes = [_head_sizes(model, classes, last=tap == model.taps[-1]) for tap in model.taps]
    if decisions:
        sizes = [*map(_at_tokens, sizes[:-1]), sizes[-1]]
        if isinstance(sizes[-1], ConvSpec) and not sizes[-1].at_tokens:
            raise UserError(
                f"config.model.head_up_scale={model.head_up_scale}: where tokens leave early the "
                f"last head must judge each by itself; use 1, config.model.head_layers=1 or "
                f"config.method.name=dense"
            )
    heads = tuple(
        HeadSpec((tap,), size, decisions.get(tap))
        for tap, size in zip(model.taps, sizes, strict=True)
    )
    whole = SegmenterSpec(vit, heads, config.method.final_at_exit, merge(config, heads))
    return choosing(config, whole)


def _at_tokens(sizes: Sizes) -> Sizes:
    """The auxiliary head without up-sampling between its convolutions: it grades tokens one by one.

    Of SETR's released auxiliary heads (two 1x1 convolutions, x4 after each) an approximation: ReLU
    and bilinear up-sampling do not commute.
    """
    return replace(sizes, up_scale=1) if isinstance(sizes, ConvSpec) else sizes


def _head_sizes(model: ConfigDict, classes: int, *, last: bool) -> Sizes:
    """Sizes of the last head or of an auxiliary one, which may be of another kind."""
    if not last and model.aux_head:
        one_of("model.aux_head", model.aux_head, ("atm", "conv", "mask_transformer"))
        model = model.copy_and_resolve_references()
        model.update(head=model.aux_head, head_width=model.aux_head_width)
        model.update(head_layers=model.aux_head_layers)
    if model.head == "atm":
        return _atm(model, classes)
    if model.head == "mask_transformer":
        weight = 1.0 if last else model.aux_weight
        sizes = (model.head_width, model.head_heads, model.head_layers)
        return MaskSpec(classes, *sizes, weight)
    return ConvSpec(
        classes=classes,
        channels=model.head_width,
        convs=model.head_layers,
        up_scale=model.head_up_scale,
        weight=1.0 if last else model.aux_weight,
    )


def _atm(model: ConfigDict, classes: int) -> AtmSpec:
    if model.head_width % model.head_heads:
        raise UserError(
            f"model.head_width={model.head_width} is not a multiple of "
            f"model.head_heads={model.head_heads}"
        )
    return AtmSpec(classes, model.head_width, model.head_heads, model.head_layers)
