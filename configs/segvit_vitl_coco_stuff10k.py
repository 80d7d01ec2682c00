"""SegViT on ViT-L with DToP's decoupled heads, COCO-Stuff-10K, 512x512: a dense row of DToP.

Published: 47.4 mIoU (single scale, sliding window), 366.9 GMACs with the last head alone.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 160 k steps of 16 images.

    python train.py --config=configs/segvit_vitl_coco_stuff10k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_vitl_coco_stuff10k
    python eval.py --config=configs/segvit_vitl_coco_stuff10k.py --config.data.root=DATA \
        --workdir=runs/segvit_vitl_coco_stuff10k

DATA: python -m jaxseg.tools.prepare_data --name=coco_stuff10k (docs/datasets.md).
AUGREG.npz: AugReg's ViT-L/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.data.name = "coco_stuff10k"
    config.data.val = config.data.test = "test"
    config.data.resize = config.eval.resize = (2048, 512)
    config.data.crop = config.eval.crop = (512, 512)
    config.eval.stride = (341, 341)
    config.model.head_heads = 16
    return finish(config, arg)
