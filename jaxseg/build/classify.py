"""The classifier of a configuration, and how it is evaluated."""

from ml_collections import ConfigDict

from jaxseg.build.checks import one_of, two_sides
from jaxseg.build.data import CLASS_SETS
from jaxseg.build.method import CHOICES, choosing
from jaxseg.build.network import vit_spec
from jaxseg.class_eval import ClassEvalSpec
from jaxseg.errors import UserError
from jaxseg.models.classifier import ClassSpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec


def classifier_spec(config: ConfigDict, classes: int) -> SegmenterSpec:
    """The network for ``classes`` classes; its head reads the last block, whatever model.taps."""
    model, method = config.model, config.method
    one_of("model.head", model.head, ("class",))
    one_of("method.name", method.name, tuple(name for name in CHOICES if name != "dtop"))
    one_of("method.merge", method.merge, ("none",))
    for field in ("class_token", "final_norm"):
        if not model[field]:
            raise UserError(f"config.model.{field}=False: a classifier needs it; use True")
    for layer in range(1, 24):
        threshold = method[f"exit{layer}"].threshold
        if threshold != 1.0:
            raise UserError(
                f"config.method.exit{layer}.threshold={threshold}: a classifier has no heads for "
                f"tokens to leave at; use 1"
            )
    vit = vit_spec(config)
    heads = (HeadSpec((vit.depth - 1,), ClassSpec(classes)),)
    return choosing(config, SegmenterSpec(vit, heads))


def class_eval_spec(config: ConfigDict) -> ClassEvalSpec:
    """How images are seen."""
    evaluation, data = config.eval, config.data
    one_of("data.name", data.name, CLASS_SETS)
    two_sides("eval.crop", evaluation.crop)
    return ClassEvalSpec(
        crop=tuple(evaluation.crop),
        share=evaluation.crop_share,
        batch_size=evaluation.batch_size,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
