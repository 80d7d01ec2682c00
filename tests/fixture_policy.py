"""The reference file of CTS's policy network; see `fixture_parts`."""

import jax
import numpy as np
from fixture_parts import bind, images_of, module_shapes, weights_below

from jaxseg.convert.efficientnet import policy_rules, trunk_rules
from jaxseg.convert.rules import convert
from jaxseg.models.efficientnet import LITE0, EfficientNetLite0
from jaxseg.models.policy import Policy, PolicySpec

DEPTHS = {8: 3, 16: 5}  # stride -> stages before its map


def efficientnet(data: dict, check) -> None:
    """F9: the network, and its trunk cut where the strides end."""
    images, weights = images_of(data, "in/image"), weights_below(data, "weights/")
    source = {f"backbone.{n}": v for n, v in weights.items()}
    source |= {f"head.{n}": v for n, v in weights_below(data, "weights_head/").items()}
    cts = PolicySpec((2,))
    flat = convert(source, policy_rules("", ""), module_shapes(Policy(cts), ""), "fixture")

    @jax.jit
    def both(flat, images):
        net = bind(Policy(cts), flat)
        cells = net.trunk(images)
        return cells, net.head(cells)

    ours = "efficientnet_lite0/"
    for name, values in zip(("stride32", "policy_logits"), both(flat, images), strict=True):
        check.equal(ours + name, _channels_first(values))
    for stride, depth in DEPTHS.items():
        cut = EfficientNetLite0(stages=LITE0[:depth])
        kept = {n: v for n, v in weights.items() if not _behind(n, depth)}
        flat = convert(kept, trunk_rules("", ""), module_shapes(cut, ""), "fixture")
        values = jax.jit(lambda flat, images, cut=cut: bind(cut, flat)(images))(flat, images)
        check.equal(f"{ours}stride{stride}", _channels_first(values))
    check.skip("tf_efficientnet_lite0", "other padding and epsilon: no model here reads it")


def _behind(name: str, depth: int) -> bool:
    return name.startswith("blocks.") and int(name.split(".")[1]) >= depth


def _channels_first(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)
