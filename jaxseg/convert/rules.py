"""The engine: rules say which source array becomes which parameter; nothing may be left over."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxseg.errors import UserError

Arrays = dict[str, np.ndarray]
LISTED = 5  # names per kind of mismatch in an error message


@dataclass(frozen=True)
class Rule:
    """Source names that fully match ``pattern`` become ``targets``.

    Targets are templates for `re.Match.expand` (``\\1`` is the first group). ``change`` turns the
    source array into one array per target. A rule without targets ignores its source; ``why`` says
    the reason.
    """

    pattern: str
    targets: tuple[str, ...]
    change: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
    why: str = ""


def copy(pattern: str, target: str) -> Rule:
    """The array as it is."""
    return Rule(pattern, (target,))


def ignore(pattern: str, why: str) -> Rule:
    return Rule(pattern, (), lambda x: (), why)


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """torch's [out, in] weight and its bias."""
    return (
        Rule(source + r"\.weight", (target + ".kernel",), lambda x: (x.T,)),
        copy(source + r"\.bias", target + ".bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """torch's weight and bias of a LayerNorm."""
    return (
        copy(source + r"\.weight", target + ".scale"),
        copy(source + r"\.bias", target + ".bias"),
    )


def convert(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
) -> Arrays:
    """float32 parameters of exactly ``shapes``, from ``source``.

    Raises UserError, naming everything at once: source names that no rule knows, two sources of one
    parameter, parameters that stay empty, and shapes that differ.
    """
    out, unknown, twice, wrong = {}, [], [], []
    for name, array in source.items():
        rule, match = _first_match(rules, name)
        if rule is None:
            unknown.append(name)
            continue
        targets = [match.expand(target) for target in rule.targets]
        try:
            parts = rule.change(np.asarray(array, np.float32))
        except (ValueError, IndexError):  # too few axes, or a packed array that does not split
            wrong.append(f"{name} {np.shape(array)}")
            parts = [np.zeros(shapes.get(target, ()), np.float32) for target in targets]
        twice += [target for target in targets if target in out]
        for target, part in zip(targets, parts, strict=True):
            out[target] = np.ascontiguousarray(part)
    extra = [name for name in out if name not in shapes]
    empty = [name for name in shapes if name not in out]
    wrong += [
        f"{name} {out[name].shape} instead of {tuple(shapes[name])}"
        for name in out
        if name in shapes and out[name].shape != tuple(shapes[name])
    ]
    found = {
        "not understood": unknown,
        "given twice": twice,
        "unknown to the model": extra,
        "without a source": empty,
        "of another shape": wrong,
    }
    report = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in found.items() if names]
    if report:
        raise UserError(f"{origin}: cannot convert: {'; '.join(report)}")
    return out


def _first_match(rules: Sequence[Rule], name: str) -> tuple[Rule, re.Match] | tuple[None, None]:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, match
    return None, None


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
