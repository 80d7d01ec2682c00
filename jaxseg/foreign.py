"""Checkpoints of other programs as models of this one: configuration, classes and parameters."""

import math
import re
from typing import NamedTuple

from jaxseg import build
from jaxseg.config import ConfigDict, defaults
from jaxseg.convert import sizes
from jaxseg.convert.backbone import prepared
from jaxseg.convert.classifier import beside_vit, kernel_shape
from jaxseg.convert.efficientnet import policy_rules
from jaxseg.convert.kinds import Kind, State, kind_of
from jaxseg.convert.rules import Arrays, Rule, convert
from jaxseg.data.classes import Classes
from jaxseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.errors import UserError
from jaxseg.model_arrays import POLICY
from jaxseg.models.heads import ConvSpec
from jaxseg.models.network import shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViTSpec
from jaxseg.published import DATA_SETS, Published, classes_of, recipe_of, taps_of


class Model(NamedTuple):
    """A converted checkpoint; ``config`` and ``classes`` are None where it is a ViT alone.

    ``ignored``: (array of the source, reason).
    """

    kind: Kind
    config: ConfigDict | None
    classes: Classes | None
    arrays: Arrays
    ignored: tuple[tuple[str, str], ...]


def model_of(source: State, given: ConfigDict | None, origin: str) -> Model:
    """The model that the arrays of a checkpoint make; ``given``: a configuration instead of the
    published one.

    Raises UserError: the checkpoint is of no kind that can be converted, neither published nor
    fitting, or some arrays do not fit exactly (all of them are named together).
    """
    kind = kind_of(source, origin)
    vit = sizes.vit_sizes(source, kind.layout, origin, kind.prefix)
    if kind.head is not None:
        return _with_heads(kind, source, vit, given, origin)
    if given is not None and given.model.head == "class":
        return _classifier(kind, source, given, origin)
    if given is not None:
        raise UserError(f"{origin}: {kind.title} alone has no configuration; leave --config out")
    return _vit_alone(kind, source, vit, origin)


def _vit_alone(kind: Kind, source: State, vit: sizes.VitSizes, origin: str) -> Model:
    side = math.isqrt(max(vit.positions, 0))
    spec = ViTSpec(
        width=vit.width,
        depth=vit.depth,
        heads=vit.heads or 1,  # no array of the ViT depends on it
        grid=(side, side),
        patch=vit.patch,
        class_token=True,
        final_norm=vit.final_norm,
    )
    whole = SegmenterSpec(spec, (HeadSpec((0,), ConvSpec(1)),))
    wanted = {n: s.shape for n, s in shapes(whole)[0].items() if n.startswith("vit.")}
    ready = prepared(source, kind.layout, spec, origin)
    rules = kind.layout.rules(spec.final_norm, spec.class_token, "")
    arrays = convert(ready, rules, wanted, origin)
    return Model(kind, None, None, arrays, _ignored(ready, rules))


def _classifier(kind: Kind, source: State, config: ConfigDict, origin: str) -> Model:
    """A ViT and its classifier; of SViT its gates, too."""
    kernel = kernel_shape(source)
    if kernel is None:
        raise UserError(f"{origin}: {kind.title} without a classifier; leave --config out")
    spec = build.classifier_spec(config, kernel[1])
    wanted = {n: s.shape for n, s in shapes(spec)[0].items()}
    ready = prepared(source, kind.layout, spec.vit, origin)
    beside, _ = beside_vit(source, wanted)
    rules = (*beside, *kind.layout.rules(spec.vit.final_norm, spec.vit.class_token, ""))
    arrays = convert(ready, rules, wanted, origin)
    return Model(kind, config, classes_of(kernel[1]), arrays, _ignored(ready, rules))


def _with_heads(
    kind: Kind, source: State, vit: sizes.VitSizes, given: ConfigDict | None, origin: str
) -> Model:
    head = kind.head.sizes(source, kind.head.prefix, origin)
    told = _told(kind, source, vit, head, origin)
    if given is None:
        config = _published(kind, told, vit.depth, origin)
    else:
        config = given
        _check_fits(kind, config, told, origin)
    spec = build.segmenter_spec(config, told.classes)
    same = spec.vit.grid if math.prod(spec.vit.grid) == vit.positions else None
    ready = prepared(source, kind.layout, spec.vit, origin, same, kind.prefix)
    starts = [rf"auxiliary_head\.{i}\." for i in range(len(spec.heads) - 1)]
    starts.append(re.escape(kind.head.prefix))
    rules = (
        *kind.layout.rules(spec.vit.final_norm, spec.vit.class_token, re.escape(kind.prefix)),
        *(
            rule
            for i, start in enumerate(starts)
            for rule in kind.head.rules(start, f"heads.{i}.", head.levels)
        ),
        *(policy_rules(re.escape(kind.policy), POLICY) if kind.policy else ()),
    )
    wanted = {n: s.shape for part in shapes(spec) for n, s in part.items()}
    arrays = convert(ready, rules, wanted, origin)
    return Model(kind, config, classes_of(told.classes), arrays, _ignored(ready, rules))


class _Told(NamedTuple):
    """What names, shapes and the kind tell: fields of config.model, classes, pixels on a side of
    the crop (None if the patches are no square) and the number of taps."""

    fields: dict[str, object]
    classes: int
    crop: int | None
    taps: int


def _told(
    kind: Kind, source: State, vit: sizes.VitSizes, head: sizes.HeadSizes, origin: str
) -> _Told:
    variant = next((n for n, known in VARIANTS.items() if known[:2] == vit[:2]), None)
    if variant is None:
        raise UserError(
            f"{origin}: no config.model.variant is a ViT of width {vit.width} and depth {vit.depth}"
        )
    fields = dict(kind.fields) | {
        "variant": variant,
        "patch": vit.patch,
        "final_norm": vit.final_norm,
        "head": kind.head.kind,
        "head_width": head.width,
        "head_layers": head.layers,
    }
    if kind.head.kind == "mask_transformer":
        fields["head_heads"] = VARIANTS[variant][2]
    count = sizes.count_of(source, r"auxiliary_head\.(\d+)\.")
    before = [kind.head.sizes(source, f"auxiliary_head.{i}.", origin) for i in range(count)]
    if any(each != head for each in before):
        fields["aux_head"] = kind.head.kind
        fields["aux_head_width"], fields["aux_head_layers"] = before[0].width, before[0].layers
    side = math.isqrt(max(vit.positions, 0))
    crop = side * vit.patch if side * side == vit.positions else None
    return _Told(fields, head.classes, crop, count + head.levels)


def _published(kind: Kind, told: _Told, depth: int, origin: str) -> ConfigDict:
    variant = told.fields["variant"]
    recipe = recipe_of(kind.name, variant, told.classes, told.crop)
    taps = taps_of(kind.name, depth, told.taps)
    if recipe is None or taps is None:
        crop = f"crops of {told.crop} pixels" if told.crop else "crops that are no squares"
        raise UserError(
            f"{origin}: {kind.title} with ViT-{variant}, {told.classes} classes, {crop} and "
            f"{told.taps} taps is no published model; say how it is built and run: "
            f"--config=configs/NAME.py"
        )
    config = _config(recipe, told.fields | {"taps": taps})
    if kind.policy:
        config.method.merge = "cts"
    return config


def _config(recipe: Published, fields: dict[str, object]) -> ConfigDict:
    config = defaults()
    config.model.update(fields)
    if recipe.heads:
        config.model.head_heads = recipe.heads
    if recipe.classes in DATA_SETS:
        config.data.name, config.data.val = DATA_SETS[recipe.classes]
        config.data.test = config.data.val
    if recipe.imagenet:
        config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    else:
        config.data.mean = config.data.std = (127.5, 127.5, 127.5)
    config.data.resize = config.eval.resize = recipe.resize
    config.data.crop = config.eval.crop = (recipe.crop, recipe.crop)
    config.eval.stride = (recipe.stride, recipe.stride)
    return config


def _check_fits(kind: Kind, config: ConfigDict, told: _Told, origin: str) -> None:
    """What shapes would not show, or not in one line."""
    differ = [
        f"config.model.{name}={config.model[name]!r} instead of {told.fields[name]!r}"
        for name in ("variant", "patch", "final_norm", "head", *kind.fixed)
        if config.model[name] != told.fields[name]
    ]
    if (config.method.merge == "cts") != bool(kind.policy):
        differ.append(f"config.method.merge={config.method.merge!r}")
    if len(config.model.taps) != told.taps:
        differ.append(f"config.model.taps={tuple(config.model.taps)} instead of {told.taps} taps")
    if differ:
        raise UserError(f"{origin}: --config does not fit: {'; '.join(differ)}")


def _ignored(source: State, rules: tuple[Rule, ...]) -> tuple[tuple[str, str], ...]:
    firsts = (
        (name, next(rule for rule in rules if re.fullmatch(rule.pattern, name))) for name in source
    )
    return tuple((name, rule.why) for name, rule in firsts if not rule.targets)
