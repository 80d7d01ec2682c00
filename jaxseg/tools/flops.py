"""MACs of one forward pass on one training crop, part by part.

    python -m jaxseg.tools.flops --config=configs/segvit_vitb_ade20k.py

The last line is one JSON object with both conventions of the field (see `jaxseg.flops`). Needs no
data: a folder data set that is not there is counted with --classes.
"""

import json

from absl import flags

from jaxseg import build, cli, tasks
from jaxseg.models.macs import dense_macs

FLAGS = flags.FLAGS


def main(_) -> None:
    config = FLAGS.config
    classes = FLAGS.classes or build.class_count(config)
    spec = tasks.of(config).spec(config, classes)
    size = tuple(config.data.crop)
    macs = dense_macs(spec, size)
    print(f"input {size[1]} x {size[0]} pixels, {classes} classes; GMACs")
    print(macs.table())
    print(
        json.dumps(
            {
                "gmacs_backbone_and_final_head": round(macs.gmacs_backbone_and_final_head, 3),
                "gmacs_all_heads": round(macs.gmacs_all_heads, 3),
                "input": size,
                "classes": classes,
            }
        )
    )


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("classes", None, "Number of classes; default: what the data set has.")
    cli.run(main)
