"""EfficientNet-Lite0 as timm names it, and the policy network of CTS around it."""

from jaxseg.convert.backbone import CLASSIFIER
from jaxseg.convert.heads import COUNTER
from jaxseg.convert.rules import Rule, copy, ignore


def trunk_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Parameters and running statistics, e.g. from "backbone\\." to "trunk."."""
    separable, theirs = source + r"blocks\.0\.(\d+)\.", source + r"blocks\.([1-9])\.(\d+)\."
    first, ours = target + r"stages.0.\1.", target + r"stages.\1.\2."
    return (
        Rule(source + r"conv_stem\.weight", (target + "stem.kernel",), _spatial),
        *_batch_norm(source + "bn1", target + "stem_norm"),
        # The first stage does not widen: its batch norms are numbered one lower.
        Rule(separable + r"conv_dw\.weight", (first + "depthwise.kernel",), _depthwise),
        *_batch_norm(separable + "bn1", first + "depthwise_norm"),
        Rule(separable + r"conv_pw\.weight", (first + "project.kernel",), _spatial),
        *_batch_norm(separable + "bn2", first + "project_norm"),
        Rule(theirs + r"conv_pw\.weight", (ours + "expand.kernel",), _spatial),
        *_batch_norm(theirs + "bn1", ours + "expand_norm"),
        Rule(theirs + r"conv_dw\.weight", (ours + "depthwise.kernel",), _depthwise),
        *_batch_norm(theirs + "bn2", ours + "depthwise_norm"),
        Rule(theirs + r"conv_pwl\.weight", (ours + "project.kernel",), _spatial),
        *_batch_norm(theirs + "bn3", ours + "project_norm"),
    )


def timm_trunk_rules(target: str) -> tuple[Rule, ...]:
    """timm's classifier "efficientnet_lite0"; not "tf_efficientnet_lite0", which pads otherwise."""
    return (*trunk_rules("", target), ignore(r"(conv_head|bn2|classifier)\..*", CLASSIFIER))


def policy_rules(source: str, target: str) -> tuple[Rule, ...]:
    """CTS's policy network, e.g. from "policy_net\\." or, in a file of its own, from ""."""
    return (
        *trunk_rules(source + r"backbone\.", target + "trunk."),
        Rule(source + r"head\.weight", (target + "head.kernel",), _pointwise),
        copy(source + r"head\.bias", target + "head.bias"),
    )


def _spatial(x):
    """[out, in, k, k] -> [k, k, in, out]."""
    return (x.transpose(2, 3, 1, 0),)


def _pointwise(x):
    """[out, in, 1, 1] -> [in, out]; a kernel of another size is refused."""
    return (x.reshape(x.shape[:2]).T,)


def _depthwise(x):
    """[C, 1, k, k] -> [k, k, C]; a kernel that mixes channels is refused."""
    return (x.squeeze(1).transpose(1, 2, 0),)


def _batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        copy(source + r"\.weight", target + ".scale"),
        copy(source + r"\.bias", target + ".bias"),
        copy(source + r"\.running_mean", target + ".mean"),
        copy(source + r"\.running_var", target + ".var"),
        ignore(source + r"\.num_batches_tracked", COUNTER),
    )
