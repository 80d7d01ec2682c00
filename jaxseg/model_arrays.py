"""The arrays that a segmenter computes with: a model's, and its policy's where tokens merge."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxseg.errors import UserError
from jaxseg.model_dir import WEIGHTS, StoredModel, load
from jaxseg.models.network import shapes
from jaxseg.models.policy import heads_for
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.weights import check_same

POLICY = "policy."  # names of the arrays of a segmenter's policy


def arrays_for(stored: StoredModel, config, spec: SegmenterSpec) -> dict:
    """The model's arrays; those of its policy by the sides that ``spec`` merges.

    The policy is that of the workdir that ``config.method.policy`` names, or else the stored one:
    a trained model names the workdir it was trained with, which may be gone.
    Raises UserError: arrays that do not fit ``spec``, are no floats, or were trained for other
    sides.
    """
    arrays = dict(stored.arrays)
    strange = [
        name for name, value in arrays.items() if value.dtype.kind not in "fV"
    ]  # V: bfloat16
    if strange:
        raise UserError(
            f"{stored.origin}/{WEIGHTS}: {len(strange)} arrays are no floats, the first is "
            f"{strange[0]} ({arrays[strange[0]].dtype}); get the file again"
        )
    own = {n.removeprefix(POLICY): v for n, v in arrays.items() if n.startswith(POLICY)}
    arrays = {name: value for name, value in arrays.items() if not name.startswith(POLICY)}
    wanted = {name: shape.shape for part in shapes(spec) for name, shape in part.items()}
    where = config.method.policy
    if where == "oracle":  # its windows come with every batch
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith(POLICY)}
    elif spec.merge is not None:
        named = where not in ("", "random") and pathlib.Path(where).is_dir()
        if own and not named:
            heads = policy_heads(own, stored.graded, spec.merge.policy.sides, stored.origin)
            arrays |= {POLICY + name: value for name, value in heads.items()}
        else:
            arrays |= policy_arrays(config, spec)
    check_same(arrays, wanted, f"{stored.origin}/{WEIGHTS}")
    return arrays


def policy_arrays(config, spec: SegmenterSpec) -> dict[str, np.ndarray]:
    """Arrays of the policy that ``config.method.policy`` names, as the segmenter calls them.

    Raises UserError: none is named, or it is of no policy that fits ``spec``.
    """
    where = config.method.policy
    if where == "random":
        return {}
    if not where:
        raise UserError(
            f"config.method.merge={config.method.merge!r} needs a policy: name the workdir of its "
            f"training with config.method.policy=DIR (or oracle, to evaluate with labels)"
        )
    found = load(where)
    if found.config.task != "policy":
        raise UserError(
            f"config.method.policy={where!r}: the workdir of a run with "
            f"config.task={found.config.task}; name one of a run with config.task=policy"
        )
    heads = policy_heads(found.arrays, found.graded, spec.merge.policy.sides, where)
    arrays = {POLICY + name: value for name, value in heads.items()}
    wanted = {n: s.shape for part in shapes(spec) for n, s in part.items() if n.startswith(POLICY)}
    check_same(arrays, wanted, f"{where}/{WEIGHTS}")
    return arrays


def policy_heads(
    arrays: Mapping[str, np.ndarray], trained: Sequence[int], sides: Sequence[int], origin: str
) -> dict[str, np.ndarray]:
    """Arrays of a policy ``trained`` for some sides, as one for ``sides`` calls them.

    Raises UserError, which ``origin`` starts: a side that it was not trained for.
    """
    unknown = [side for side in sides if side not in trained]
    if unknown:
        known = ", ".join(map(str, trained)) or "none"
        raise UserError(
            f"{origin}: its policy grades windows of side {known}, not {unknown[0]}; switch that "
            f"side off (config.method.tau{unknown[0]}=2.0) or train a policy with it in "
            f"config.policy.sides"
        )
    return heads_for(arrays, trained, sides)


def no_oracle(config) -> None:
    """Raise UserError where labels merge: only an evaluation has them."""
    if config.method.merge != "none" and config.method.policy == "oracle":
        raise UserError(
            "config.method.policy='oracle' reads labels, for eval.py alone; name the workdir of a "
            "trained policy"
        )
