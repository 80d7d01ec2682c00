"""What a ViT's file has beside the backbone and a classifier of ours has too."""

from collections.abc import Mapping

import numpy as np

from jaxseg.convert.rules import Rule, copy, linear, norm

KERNEL, GATES = "heads.0.linear.kernel", "method.gates."
_HEAD = (
    *linear("head", "heads.0.linear"),  # timm, DeiT, SViT
    copy("head/kernel", KERNEL),  # AugReg
    copy("head/bias", "heads.0.linear.bias"),
)
_GATE, _OURS = r"selective_modules\.(\d+)\.", GATES + r"\1."
_SVIT = (
    *norm(_GATE + "norm", _OURS + "norm"),
    *linear(_GATE + r"mlp\.fc1", _OURS + "fc1"),
    *linear(_GATE + r"mlp\.fc2", _OURS + "fc2"),
)


def kernel_shape(source: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """(width, classes) of the classifier; None if there is none that reads the class token as it
    is: not one behind a representation layer ("pre_logits") or a mean of patches ("fc_norm")."""
    if any(name.startswith(("pre_logits", "fc_norm")) for name in source):
        return None
    shapes = [np.shape(source[name]) for name in ("head/kernel", "head.weight") if name in source]
    if not shapes or len(shapes[0]) != 2:
        return None
    return shapes[0] if "head/kernel" in source else shapes[0][::-1]


def beside_vit(
    source: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """(rules, how the names start that they fill); ``shapes``: of all parameters of the model.

    The classifier where both have one of the same classes, SViT's gates where both have such.
    """
    rules, filled = (), ()
    if KERNEL in shapes and kernel_shape(source) == shapes[KERNEL]:
        rules, filled = _HEAD, ("heads.0.",)
    gates = "selective_modules.0.mlp.fc1.weight", f"{GATES}0.fc1.kernel"
    if gates[0] in source and gates[1] in shapes:
        rules, filled = (*rules, *_SVIT), (*filled, GATES)
    return rules, filled
