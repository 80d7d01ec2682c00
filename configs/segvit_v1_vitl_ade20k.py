"""SegViT as first published (three-level cascade) on ViT-L, ADE20K, 640x640.

Published: 54.6 mIoU (single scale, sliding window), 637.9 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: 4 A100, 160 k steps of 8 images.

    python train.py --config=configs/segvit_v1_vitl_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_v1_vitl_ade20k
    python eval.py --config=configs/segvit_v1_vitl_ade20k.py --config.data.root=DATA \
        --workdir=runs/segvit_v1_vitl_ade20k

DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md). AUGREG.npz: AugReg's
ViT-L/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.model.head = "cascade"
    config.model.head_heads = 16
    config.optim.no_decay = (r"^vit\..*norm",)  # rules go by first match there: head norms do decay
    config.optim.power = 1.0
    config.optim.clip_norm = 35.0
    config.optim.warmup_multiplies = True
    config.train.batch_size = 8

    config.data.resize = config.eval.resize = (2048, 640)
    config.eval.stride = (608, 608)
    return finish(config, arg)
