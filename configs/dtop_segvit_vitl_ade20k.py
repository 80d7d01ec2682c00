"""DToP on SegViT with ViT-L, ADE20K, 640x640: tokens leave after layers 8 and 16.

Published: (p0 0.95, GMACs with the heads that decide) dense 53.3 mIoU at 617.0; Finetune 52.8 at
412.8 (p0 0.90: 52.4 at 380.3).
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 2.5 h (ViT-B, Finetune).

    python train.py --config=configs/dtop_segvit_vitl_ade20k.py --config.data.root=DATA \
        --config.init_from=runs/segvit_vitl_ade20k/model.safetensors \
        --workdir=runs/dtop_segvit_vitl_ade20k
    python eval.py --config=configs/dtop_segvit_vitl_ade20k.py --config.data.root=DATA \
        --workdir=runs/dtop_segvit_vitl_ade20k

This is DToP@Finetune: from the dense model, all weights trained as in the released code; the paper
speaks of the heads alone, which is ":heads_only". DToP@Direct trains nothing: evaluate the dense
model's workdir with this configuration. DToP@Retrain is ":retrain", from the ImageNet weights.
DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md).
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.method.exit8.threshold = config.method.exit16.threshold = 0.95
    return dtop(config, arg, finetune_steps=40_000)
