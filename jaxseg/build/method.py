"""The method of a configuration: who leaves, who skips blocks, which patches share a token."""

from collections.abc import Callable, Mapping
from dataclasses import fields

from ml_collections import ConfigDict

from jaxseg.build.checks import one_of
from jaxseg.errors import UserError
from jaxseg.methods import METHODS
from jaxseg.models.heads import ConvSpec
from jaxseg.models.merged import MergeSpec
from jaxseg.models.policy import PATCH, TRUNKS, OracleSpec, PolicySpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec

CHOICES = ("dense", "dtop", "svit", "dynamicvit", "evit", "evovit", "ats")  # of method.name


def exits(config: ConfigDict) -> dict[int, Callable]:
    """The decision after each block (0-based) where tokens leave.

    DToP's; a method that chooses tokens has them beside it, where a threshold is set.
    """
    method, taps = config.method, config.model.taps
    one_of("method.name", method.name, CHOICES)
    if method.name == "dense":
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
        decisions[layer - 1] = METHODS["dtop"](threshold, method.context, method.k, method.share)
    return decisions


def choosing(config: ConfigDict, spec: SegmenterSpec) -> SegmenterSpec:
    """With the method that chooses tokens before or inside blocks, if it is one of those."""
    method, kind = config.method, METHODS[config.method.name]
    if method.name in ("dense", "dtop"):
        return spec
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
    if spec.exits and not made.preserve:
        raise UserError(
            "config.method.preserve=False: who waits reads as zero, which no exit can judge; use "
            "True, or config.method.exitN.threshold=1"
        )
    return SparseSpec(
        spec.vit, spec.heads, spec.final_at_exit, spec.merge, method=made, seed=config.seed
    )


def merge(config: ConfigDict, heads: tuple[HeadSpec, ...]) -> MergeSpec | None:
    """Which patches share a token from the start."""
    method = config.method
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
    """What accepts windows: that of ``method.merge``; with none, all that score 0.5 or more.

    Raises UserError: an unknown one, or dcts that merges nothing.
    """
    method = config.method
    one_of("method.merge", method.merge, ("none", "cts", "dcts"))
    if method.merge == "cts":
        return METHODS["cts"](method.windows)
    if method.merge == "dcts":
        tau = tuple((side, method[f"tau{side}"]) for side in (2, 4, 8, 16))
        made = METHODS["dcts"](tau, method.guard, method.budget)
        if not made.sides:
            raise UserError(
                "config.method.merge='dcts' merges nothing: config.method.tau2, tau4, tau8 and "
                "tau16 are all above 1, which is off; give one a threshold, or use "
                "config.method.merge=none"
            )
        return made
    return METHODS["dcts"](tuple((side, 0.5) for side in config.policy.sides))


def graded_sides(config: ConfigDict) -> tuple[int, ...]:
    """Sides of the windows that the policy of a trained model grades, in the order of its heads."""
    method = config.method
    if config.task == "policy":
        return tuple(config.policy.sides)
    on = tuple(side for side in (2, 4, 8, 16) if method[f"tau{side}"] <= 1.0)
    return {"cts": (2,), "dcts": on}.get(method.merge, ())


def policy_spec(config: ConfigDict, classes: int) -> PolicySpec:
    """The network that grades windows, to be trained.

    Raises UserError: impossible sides, or that ``config.method`` merges windows of other ones.
    """
    policy = config.policy
    if len(policy.sides) != len(policy.purity) or not policy.sides:
        raise UserError(
            f"config.policy.purity={policy.purity}: give one share for each of "
            f"config.policy.sides={policy.sides}"
        )
    if any(side not in (2, 4, 8, 16) for side in policy.sides):
        raise UserError(f"config.policy.sides={policy.sides}: choose among 2, 4, 8 and 16")
    if tuple(sorted(set(policy.sides))) != tuple(policy.sides):
        raise UserError(f"config.policy.sides={policy.sides}: name sides once each, rising")
    merged = merge_decision(config).sides
    if not merged or not set(merged) <= set(policy.sides):
        raise UserError(
            f"config.method.merge={config.method.merge!r} merges windows of side "
            f"{', '.join(map(str, merged)) or 'none'}, which config.policy.sides={policy.sides} "
            f"must have: change those, config.method.tauN (2.0 = off) or config.method.windows"
        )
    one_of("policy.trunk", policy.trunk, tuple(TRUNKS))
    purity = tuple(policy.purity)
    return PolicySpec(tuple(policy.sides), policy.trunk, classes, purity, policy.border)


def frozen(config: ConfigDict) -> tuple[str, ...]:
    """A policy is trained by itself: a segmenter's decisions pass no gradient to it."""
    merges = config.task == "segment" and config.method.merge != "none"
    return ("^policy",) if merges and merge_decision(config).sides else ()


def teacher(config: ConfigDict, spec: SegmenterSpec, arrays: Mapping) -> dict:
    """What a method that distils learns from: a frozen copy of the weights training starts from."""
    if not isinstance(spec, SparseSpec) or not spec.method.distil:
        return {}
    if not config.init_from:
        raise UserError(
            "config.init_from='': distillation learns from a trained dense model; name its "
            "model.safetensors, or set config.method.distil=0"
        )
    return spec.teacher_arrays(arrays)
