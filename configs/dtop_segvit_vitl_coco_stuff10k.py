"""DToP on SegViT with ViT-L, COCO-Stuff-10K, 512x512: tokens leave after layers 8 and 16.

Published: (p0 0.95, GMACs with the heads that decide) dense 47.4 mIoU at 366.9; Finetune 47.1 at
276.2 (p0 0.90: 46.6 at 253.1).
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 2.5 h (ViT-B, Finetune).

    python train.py --config=configs/dtop_segvit_vitl_coco_stuff10k.py --config.data.root=DATA \
        --config.init_from=runs/segvit_vitl_coco_stuff10k/model.safetensors \
        --workdir=runs/dtop_segvit_vitl_coco_stuff10k
    python eval.py --config=configs/dtop_segvit_vitl_coco_stuff10k.py --config.data.root=DATA \
        --workdir=runs/dtop_segvit_vitl_coco_stuff10k

This is DToP@Finetune: from the dense model, all weights trained as in the released code; the paper
speaks of the heads alone, which is ":heads_only". DToP@Direct trains nothing: evaluate the dense
model's workdir with this configuration. DToP@Retrain is ":retrain", from the ImageNet weights.
DATA: python -m jaxseg.tools.prepare_data --name=coco_stuff10k (docs/datasets.md).

The paper says 40 k steps of finetuning, the released config 20 k, which is taken here.
"""

from configs import segvit_vitl_coco_stuff10k
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_coco_stuff10k.get_config()
    config.method.exit8.threshold = config.method.exit16.threshold = 0.95
    return dtop(config, arg, finetune_steps=20_000)
