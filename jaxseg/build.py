"""From a configuration to the frozen dataclasses that the rest of the library takes.

`ConfigDict` stops here: nothing below this file has seen one.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from ml_collections import ConfigDict

from jaxseg.data.classes import Source
from jaxseg.data.transforms import Recipe
from jaxseg.errors import UserError
from jaxseg.inference import EvalSpec
from jaxseg.methods import METHODS
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.mask_transformer import MaskSpec
from jaxseg.models.merged import MergeSpec
from jaxseg.models.policy import PATCH, TRUNKS, OracleSpec, PolicySpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.models.vit import VARIANTS, ViTSpec
from jaxseg.optim import OptimSpec
from jaxseg.training import TrainSpec

CHOICES = ("dense", "dtop", "svit", "dynamicvit", "evit", "evovit", "ats")  # of method.name
HEADS = ("atm", "cascade", "conv", "mask_transformer")
Sizes = AtmSpec | ConvSpec | MaskSpec
DATA_SETS = ("folder", "shapes", "ade20k", "pascal_context", "coco_stuff10k")


def make_source(config: ConfigDict, which: str) -> Source:
    """Images and labels of a split: ``train``, ``val`` or ``test`` as the configuration names them,
    or any split of the data set itself."""
    data = config.data
    _one_of("data.name", data.name, DATA_SETS)
    split = {"train": data.train, "val": data.val, "test": data.test}.get(which, which)
    if data.name == "shapes":
        from jaxseg.data.shapes import shapes

        parts = {"train": 0, "val": 1, "test": 2}
        if split not in parts:
            raise UserError(f"data split {split!r}: shapes has train, val and test")
        index = parts[split]
        return shapes(data.count[index], data.size, seed=index)
    if not data.root:
        raise UserError("data.root is empty; say where the data set lies: --config.data.root=DIR")
    if data.name == "folder":
        from jaxseg.data.folder import folder

        return folder(data.root, split, data.ignore)
    from jaxseg.data.builders import source

    return source(data.name, data.root, split)


def class_count(config: ConfigDict) -> int:
    """How many classes the data set has; of a prepared one without looking at its files."""
    _one_of("data.name", config.data.name, DATA_SETS)
    if config.data.name in ("folder", "shapes"):
        return len(make_source(config, "train").classes)
    from jaxseg.data.builders import BUILDERS

    return len(BUILDERS[config.data.name].CLASSES)


def recipe(config: ConfigDict) -> Recipe:
    """The training transforms."""
    data = config.data
    _two_sides("data.resize", data.resize)
    _two_sides("data.crop", data.crop)
    return Recipe(
        long=data.resize[0],
        short=data.resize[1],
        crop=tuple(data.crop),
        ratio=tuple(data.ratio),
        cat_max_ratio=data.cat_max_ratio,
        flip=data.flip,
        distort=data.distort,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def segmenter_spec(config: ConfigDict, classes: int) -> SegmenterSpec:
    """The network for ``classes`` classes."""
    model = config.model
    _one_of("model.variant", model.variant, tuple(VARIANTS))
    _one_of("model.head", model.head, HEADS)
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
    decisions = _decisions(config)
    if model.head == "cascade":
        if decisions:
            raise UserError(
                "config.model.head='cascade' reads all taps at once, so that nobody can leave "
                "early: use atm or conv, or config.method.name=dense"
            )
        heads = (HeadSpec(tuple(model.taps), _atm(model, classes)),)
        return _choosing(config, SegmenterSpec(vit, heads, merge=_merge(config, heads)))
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
    whole = SegmenterSpec(vit, heads, config.method.final_at_exit, _merge(config, heads))
    return _choosing(config, whole)


def _choosing(config: ConfigDict, spec: SegmenterSpec) -> SegmenterSpec:
    """With the method that chooses tokens before or inside blocks, if it is one of those."""
    method, kind = config.method, METHODS[config.method.name]
    if method.name in ("dense", "dtop"):
        return spec
    if spec.merge is not None:
        raise UserError(
            f"config.method.merge={method.merge!r}: patches cannot share tokens where "
            f"{method.name} chooses among them; use none, or another config.method.name"
        )
    given = {field.name: method[field.name] for field in fields(kind)}
    given = {name: value for name, value in given.items() if value != ()}  # () = as published
    made = kind(**given)
    end = spec.heads[-1].taps[-1] + 1
    if tuple(sorted(set(made.layers))) != made.layers or not 1 <= made.layers[0]:
        raise UserError(f"config.method.layers={made.layers}: name layers once each, rising from 1")
    if made.layers[-1] > end:
        raise UserError(
            f"config.method.layers={made.layers}: the last head reads layer {end}; "
            f"name layers up to that one"
        )
    if len(made.keep) != len(made.layers) or not all(0.0 < share <= 1.0 for share in made.keep):
        raise UserError(
            f"config.method.keep={made.keep}: give {len(made.layers)} shares, above 0 and up to 1, "
            f"one for each of the layers {made.layers}"
        )
    return SparseSpec(spec.vit, spec.heads, method=made, seed=config.seed)


def _merge(config: ConfigDict, heads: tuple[HeadSpec, ...]) -> MergeSpec | None:
    """Which patches share a token from the start."""
    method = config.method
    _one_of("method.merge", method.merge, ("none", "cts", "dcts"))
    if method.merge == "none":
        return None
    if config.model.patch != PATCH:
        raise UserError(f"config.model.patch={config.model.patch}: merging needs {PATCH}")
    if any(isinstance(h.sizes, ConvSpec) and not h.sizes.at_tokens for h in heads):
        raise UserError(
            f"config.model.head_up_scale={config.model.head_up_scale}: where patches share tokens "
            f"every head must judge each by itself; use 1, or config.method.merge=none"
        )
    decide = merge_decision(config)
    if not decide.sides:  # nothing is ever merged: the dense network itself
        return None
    if method.policy == "oracle":
        return MergeSpec(OracleSpec(decide.sides), decide)
    return MergeSpec(PolicySpec(decide.sides, config.policy.trunk), decide)


def merge_decision(config: ConfigDict) -> Callable:
    """What accepts windows: that of ``method.merge``; with none, all that score 0.5 or more."""
    method = config.method
    if method.merge == "cts":
        return METHODS["cts"](method.windows)
    if method.merge == "dcts":
        tau = tuple((side, method[f"tau{side}"]) for side in (2, 4, 8, 16))
        return METHODS["dcts"](tau, method.guard, method.budget)
    return METHODS["dcts"](tuple((side, 0.5) for side in config.policy.sides))


def policy_spec(config: ConfigDict, classes: int) -> PolicySpec:
    """The network that grades windows, to be trained."""
    policy = config.policy
    if len(policy.sides) != len(policy.purity) or not policy.sides:
        raise UserError(
            f"config.policy.purity={policy.purity}: give one share for each of "
            f"config.policy.sides={policy.sides}"
        )
    if any(side not in (2, 4, 8, 16) for side in policy.sides):
        raise UserError(f"config.policy.sides={policy.sides}: choose among 2, 4, 8 and 16")
    _one_of("policy.trunk", policy.trunk, tuple(TRUNKS))
    purity = tuple(policy.purity)
    return PolicySpec(tuple(policy.sides), policy.trunk, classes, purity, policy.border)


def _at_tokens(sizes: Sizes) -> Sizes:
    """The auxiliary head without up-sampling between its convolutions: it grades tokens one by one.

    Of SETR's released auxiliary heads (two 1x1 convolutions, x4 after each) an approximation: ReLU
    and bilinear up-sampling do not commute.
    """
    return replace(sizes, up_scale=1) if isinstance(sizes, ConvSpec) else sizes


def _head_sizes(model: ConfigDict, classes: int, *, last: bool) -> Sizes:
    """Sizes of the last head or of an auxiliary one, which may be of another kind."""
    if not last and model.aux_head:
        _one_of("model.aux_head", model.aux_head, ("atm", "conv", "mask_transformer"))
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


def _decisions(config: ConfigDict) -> dict[int, Callable]:
    """The decision after each block (0-based) where tokens leave."""
    method, taps = config.method, config.model.taps
    _one_of("method.name", method.name, CHOICES)
    if method.name != "dtop":
        return {}
    decisions = {}
    for layer in range(1, 24):
        threshold = method[f"exit{layer}"].threshold
        if threshold == 1.0:
            continue
        if layer - 1 not in taps[:-1]:
            raise UserError(
                f"config.method.exit{layer}.threshold={threshold}: no auxiliary head reads layer "
                f"{layer}; those of config.model.taps={taps} read {[t + 1 for t in taps[:-1]]}"
            )
        decisions[layer - 1] = METHODS[method.name](
            threshold, method.context, method.k, method.share
        )
    return decisions


def teacher(config: ConfigDict, spec: SegmenterSpec, arrays: Mapping) -> dict:
    """What a method that distils learns from: a frozen copy of the weights training starts from."""
    if not isinstance(spec, SparseSpec) or not spec.method.distil:
        return {}
    if not config.init_from.endswith(".safetensors"):
        raise UserError(
            f"config.init_from={config.init_from!r}: distillation learns from a trained dense "
            f"model; name its model.safetensors, or set config.method.distil=0"
        )
    return spec.teacher_arrays(arrays)


def optim_spec(config: ConfigDict) -> OptimSpec:
    """Optimizer and schedule."""
    optim = config.optim
    _one_of("optim.name", optim.name, ("adamw", "sgd"))
    _one_of("optim.schedule", optim.schedule, ("poly", "cosine"))
    return OptimSpec(
        optimizer=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        lr_multipliers=tuple(optim.lr_multipliers),
        no_decay=tuple(optim.no_decay),
        freeze=tuple(optim.freeze) + _frozen_policy(config),
        clip_norm=optim.clip_norm,
        warmup_steps=optim.warmup_steps,
        warmup_multiplies=optim.warmup_multiplies,
        schedule=optim.schedule,
        power=optim.power,
        end_lr=optim.end_lr,
        total_steps=optim.schedule_steps or config.train.steps,
    )


def _frozen_policy(config: ConfigDict) -> tuple[str, ...]:
    """A policy is trained by itself: a segmenter's decisions pass no gradient to it."""
    merges = config.task == "segment" and config.method.merge != "none"
    return ("^policy",) if merges and merge_decision(config).sides else ()


def train_spec(config: ConfigDict) -> TrainSpec:
    """What one step does and how long the loop runs."""
    train, optim = config.train, config.optim
    return TrainSpec(
        seed=config.seed,
        steps=train.steps,
        accumulate=optim.accumulate,
        ema=optim.ema,
        bfloat16=config.model.bfloat16,
        log_every=train.log_every,
        eval_every=train.eval_every,
        checkpoint_every=train.checkpoint_every,
        max_bad_steps=train.max_bad_steps,
    )


def eval_spec(config: ConfigDict) -> EvalSpec:
    """How images are evaluated."""
    evaluation, data = config.eval, config.data
    _one_of("eval.mode", evaluation.mode, ("slide", "whole"))
    if evaluation.resize:
        _two_sides("eval.resize", evaluation.resize)
    return EvalSpec(
        mode=evaluation.mode,
        crop=tuple(evaluation.crop),
        stride=tuple(evaluation.stride),
        scales=tuple(evaluation.scales),
        flip=evaluation.flip,
        batch_size=evaluation.batch_size,
        resize=tuple(evaluation.resize) or None,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.{field}={value!r}: choose one of {', '.join(allowed)}")


def _two_sides(field: str, value: tuple) -> None:
    if len(value) != 2 or min(value) < 1:
        raise UserError(f"config.{field}={value}: give two positive whole numbers")
