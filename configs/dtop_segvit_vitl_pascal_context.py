"""DToP on SegViT with ViT-L, Pascal-Context-59, 480x480: exits after layers 8 and 16.

Published: (p0 0.95, GMACs with the heads that decide) dense 63.0 mIoU at 315.4; Finetune 62.7 at
224.3 (p0 0.90: 62.2 at 206.1).
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 2.5 h (ViT-B, Finetune).

    python train.py --config=configs/dtop_segvit_vitl_pascal_context.py --config.data.root=DATA \
        --config.init_from=runs/segvit_vitl_pascal_context/model.safetensors \
        --workdir=runs/dtop_segvit_vitl_pascal_context
    python eval.py --config=configs/dtop_segvit_vitl_pascal_context.py --config.data.root=DATA \
        --workdir=runs/dtop_segvit_vitl_pascal_context

This is DToP@Finetune: from the dense model, all weights trained as in the released code; the paper
speaks of the heads alone, which is ":heads_only". DToP@Direct trains nothing: evaluate the dense
model's workdir with this configuration. DToP@Retrain is ":retrain", from the ImageNet weights.
DATA: python -m jaxseg.tools.prepare_data --name=pascal_context (docs/datasets.md).
"""

from configs import segvit_vitl_pascal_context
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_pascal_context.get_config()
    config.method.exit8.threshold = config.method.exit16.threshold = 0.95
    return dtop(config, arg, finetune_steps=40_000)
