"""SegViT as first published (three-level cascade) on ViT-B, ADE20K, 512x512.

Published: 51.3 mIoU (single scale, sliding window), 120.9 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: 4 A100, 160 k steps of 8 images.

    python train.py --config=configs/segvit_v1_vitb_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_v1_vitb_ade20k
    python eval.py --config=configs/segvit_v1_vitb_ade20k.py --config.data.root=DATA \
        --workdir=runs/segvit_v1_vitb_ade20k

DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md). AUGREG.npz: AugReg's
ViT-B/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).

Its author says that the published figure started from the weights of the SETR repository (timm's
vit_base_patch16_384.orig_in21k_ft_in1k); --config.init_from takes those as .npz too.
"""

from configs import segvit_vitb_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitb_ade20k.get_config()
    config.model.head = "cascade"
    config.model.head_heads = 12
    config.optim.no_decay = (r"^vit\..*norm",)  # rules go by first match there: head norms do decay
    config.optim.power = 1.0
    config.optim.clip_norm = 35.0
    config.optim.warmup_multiplies = True
    config.train.batch_size = 8
    return finish(config, arg)
