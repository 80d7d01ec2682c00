"""DToP on SegViT with ViT-B, ADE20K, 512x512: tokens leave after layers 6 and 8.

Published: (p0 0.95, GMACs with the heads that decide) dense 49.7 mIoU at 109.9; Finetune 49.8 at
86.8; Direct 47.9 at 87.5; Retrain 49.1 at 87.5.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 2.5 h (ViT-B, Finetune).

    python train.py --config=configs/dtop_segvit_vitb_ade20k.py --config.data.root=DATA \
        --config.init_from=runs/segvit_vitb_ade20k/model.safetensors \
        --workdir=runs/dtop_segvit_vitb_ade20k
    python eval.py --config=configs/dtop_segvit_vitb_ade20k.py --config.data.root=DATA \
        --workdir=runs/dtop_segvit_vitb_ade20k

This is DToP@Finetune: from the dense model, all weights trained as in the released code; the paper
speaks of the heads alone, which is ":heads_only". DToP@Direct trains nothing: evaluate the dense
model's workdir with this configuration. DToP@Retrain is ":retrain", from the ImageNet weights.
DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md).

The released pruning config has p0 0.90, where table 1 and the README say 0.95.
"""

from configs import segvit_vitb_ade20k
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitb_ade20k.get_config()
    config.method.exit6.threshold = config.method.exit8.threshold = 0.95
    return dtop(config, arg, finetune_steps=40_000)
