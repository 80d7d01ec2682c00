"""SegViT on ViT-L with DToP's decoupled heads, Pascal-Context-59, 480x480: a dense row of DToP.

Published: 63.0 mIoU (single scale, sliding window), 315.4 GMACs with the last head alone.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 160 k steps of 16 images.

    python train.py --config=configs/segvit_vitl_pascal_context.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_vitl_pascal_context
    python eval.py --config=configs/segvit_vitl_pascal_context.py --config.data.root=DATA \
        --workdir=runs/segvit_vitl_pascal_context

DATA: python -m jaxseg.tools.prepare_data --name=pascal_context (docs/datasets.md).
AUGREG.npz: AugReg's ViT-L/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.data.name = "pascal_context"
    config.data.resize = config.eval.resize = (2048, 520)
    config.data.crop = config.eval.crop = (480, 480)
    config.eval.stride = (320, 320)
    config.model.head_heads = 16
    return finish(config, arg)
