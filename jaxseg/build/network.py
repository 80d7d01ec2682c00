"""The segmenter of a configuration."""

from dataclasses import replace

from ml_collections import ConfigDict

from jaxseg.build.checks import between, one_of, two_sides
from jaxseg.build.method import choosing, exits, merge
from jaxseg.errors import UserError
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.mask_transformer import MaskSpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViTSpec

HEADS = ("atm", "cascade", "conv", "mask_transformer")
OTHERS = {"classify": "names the class of a whole image", "policy": "grades windows of patches"}
Sizes = AtmSpec | ConvSpec | MaskSpec


def segmenter_spec(config: ConfigDict, classes: int) -> SegmenterSpec:
    """The network for ``classes`` classes. Raises UserError: another task's, impossible fields."""
    if config.task in OTHERS:
        raise UserError(
            f"config.task={config.task!r}: such a model {OTHERS[config.task]} and segments "
            f"nothing; evaluate it with eval.py"
        )
    model = config.model
    one_of("model.variant", model.variant, tuple(VARIANTS))
    one_of("model.head", model.head, HEADS)
    _check_sizes(model)
    depth = VARIANTS[model.variant][1]
    if tuple(sorted(set(model.taps))) != tuple(model.taps) or not model.taps:
        raise UserError(f"model.taps={model.taps}: name blocks once each, in rising order")
    if model.taps[-1] >= depth or model.taps[0] < 0:
        raise UserError(f"model.taps={model.taps}: ViT-{model.variant} has blocks 0 to {depth - 1}")
    vit = vit_spec(config)
    decisions = exits(config)
    if model.head == "cascade":
        if decisions:
            raise UserError(
                "config.model.head='cascade' reads all taps at once, so that nobody can leave "
                "early: use atm or conv, or config.method.name=dense"
            )
        _divided(model, "head_width")
        heads = (HeadSpec(tuple(model.taps), _atm(model, classes)),)
        return choosing(config, SegmenterSpec(vit, heads, merge=merge(config, heads)))
    sizes = [_head_sizes(model, classes, last=tap == model.taps[-1]) for tap in model.taps]
    _check_kernel(config, sizes, alone=bool(decisions) or config.method.merge != "none")
    first, last = (isinstance(size, AtmSpec) for size in (sizes[0], sizes[-1]))
    if config.method.final_at_exit and len(decisions) > 1 and first and not last:
        raise UserError(
            "config.method.final_at_exit=True: what ATM exits hand on to a last head of another "
            "kind changes at the next exit; use False, one exit, or heads of one kind"
        )
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


def vit_spec(config: ConfigDict) -> ViTSpec:
    """The backbone."""
    model = config.model
    one_of("model.variant", model.variant, tuple(VARIANTS))
    width, depth, heads = VARIANTS[model.variant]
    two_sides("data.crop", config.data.crop)
    between("model.patch", model.patch, 1, 1024)
    patch = model.patch
    return ViTSpec(
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


def _check_sizes(model: ConfigDict) -> None:
    for name, most in (("width", 16384), ("heads", 256), ("up_scale", 16)):
        between(f"model.head_{name}", model[f"head_{name}"], 1, most)
    for name in ("head_layers", "aux_head_layers"):  # conv: 0 = the classifier alone
        between(f"model.{name}", model[name], 0, 64)
    between("model.aux_head_width", model.aux_head_width, 1, 16384)
    between("model.aux_head_up_scale", model.aux_head_up_scale, 0, 16)


def _check_kernel(config: ConfigDict, sizes: list[Sizes], *, alone: bool) -> None:
    """``alone``: heads see tokens one by one, wherever they lie, hence no neighbours of theirs."""
    kernel = config.model.head_kernel
    if kernel not in (1, 3):
        raise UserError(f"config.model.head_kernel={kernel}: choose 1 or 3")
    if alone and any(isinstance(each, ConvSpec) and each.kernel != 1 for each in sizes):
        raise UserError(
            f"config.model.head_kernel={kernel}: where tokens leave early or are shared every head "
            f"must judge each by itself, without its neighbours; use 1, or "
            f"config.method.name=dense with config.method.merge=none"
        )


def _at_tokens(sizes: Sizes) -> Sizes:
    """The auxiliary head without up-sampling between its convolutions: it grades tokens one by one.

    Of SETR's released auxiliary heads (two 1x1 convolutions, x4 after each) an approximation: ReLU
    and bilinear up-sampling do not commute.
    """
    return replace(sizes, up_scale=1) if isinstance(sizes, ConvSpec) else sizes


def _head_sizes(model: ConfigDict, classes: int, *, last: bool) -> Sizes:
    """Sizes of the last head or of an auxiliary one, which may be of another kind."""
    field = "head_width"
    if not last and model.aux_head:
        one_of("model.aux_head", model.aux_head, ("atm", "conv", "mask_transformer"))
        model = model.copy_and_resolve_references()
        field = "aux_head_width"
        model.update(head=model.aux_head, head_width=model.aux_head_width)
        model.update(head_layers=model.aux_head_layers)
        model.update(head_up_scale=model.aux_head_up_scale or model.head_up_scale)
    if model.head == "atm":
        _divided(model, field)
        return _atm(model, classes)
    if model.head == "mask_transformer":
        _divided(model, field)
        weight = 1.0 if last else model.aux_weight
        sizes = (model.head_width, model.head_heads, model.head_layers)
        return MaskSpec(classes, *sizes, weight)
    return ConvSpec(
        classes=classes,
        channels=model.head_width,
        convs=model.head_layers,
        kernel=model.head_kernel,
        up_scale=model.head_up_scale,
        weight=1.0 if last else model.aux_weight,
    )


def _divided(model: ConfigDict, field: str) -> None:
    if model.head_width % model.head_heads:
        raise UserError(
            f"config.model.{field}={model.head_width} is not a multiple of "
            f"config.model.head_heads={model.head_heads}; change one of them"
        )


def _atm(model: ConfigDict, classes: int) -> AtmSpec:
    return AtmSpec(classes, model.head_width, model.head_heads, model.head_layers)
