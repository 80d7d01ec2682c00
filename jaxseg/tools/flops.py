"""MACs of one forward pass on one training crop, part by part.

    python -m jaxseg.tools.flops --config=configs/segvit_vitb_ade20k.py

The last line is one JSON object with both conventions of the field (see `jaxseg.flops`), for a
policy (config.task=policy) with its one total. Needs no data: a folder data set that is not there
is counted with --classes.

Counted are all heads on all tokens. Where as many tokens of every image go on, those count, and the
heads that inference runs: EViT, Evo-ViT, DynamicViT, SViT with method.selection=static; and CTS,
with its policy and nobody leaving at exits, which is how its figures are published. Whom dCTS
merges, exits let go, ATS samples and SViT's gates pass depends on the image: eval.py counts that,
here all tokens count, with dCTS's policy beside them.
"""

import json

from absl import flags

from jaxseg import build, cli, tasks
from jaxseg.flops import ModelMacs
from jaxseg.methods.cts import Share
from jaxseg.models.macs import dense_macs, fixed_tokens, policy_macs, pruned_macs
from jaxseg.models.policy import PolicySpec
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.sparse import SparseSpec

FLAGS = flags.FLAGS


def counted(spec: SegmenterSpec, size: tuple[int, int]) -> ModelMacs:
    """What can be said without an image; ``size``: (height, width)."""
    decide = spec.merge.decide if spec.merge else None
    if isinstance(spec, SparseSpec) and spec.fixed_counts:
        return pruned_macs(spec, size, fixed_tokens(spec, size))
    if isinstance(spec, SparseSpec) or not isinstance(decide, Share):
        return dense_macs(spec, size)
    left = decide.left(spec.vit.grid) + spec.vit.class_token
    return pruned_macs(spec, size, [left] * spec.stages)


def main(_) -> None:
    config = FLAGS.config
    classes = FLAGS.classes or build.class_count(config)
    spec = tasks.of(config).spec(config, classes)
    size = tuple(config.data.crop)
    print(f"input {size[1]} x {size[0]} pixels, {classes} classes; GMACs")
    if isinstance(spec, PolicySpec):
        parts = policy_macs(spec, size)
        totals = {"gmacs_policy": parts.total / 1e9}
        for name, macs in parts.parts.items():
            print(f"{name:23}  {macs / 1e9:9.3f}")
    else:
        found = counted(spec, size)
        totals = {
            "gmacs_backbone_and_final_head": found.gmacs_backbone_and_final_head,
            "gmacs_all_heads": found.gmacs_all_heads,
        }
        print(found.table())
    totals = {name: round(value, 3) for name, value in totals.items()}
    print(json.dumps(totals | {"input": size, "classes": classes}))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("classes", None, "Number of classes; default: what the data set has.")
    cli.run(main)
