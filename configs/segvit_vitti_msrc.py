"""SegViT with DToP's decoupled heads on ViT-Ti, MSRC v2 (21 classes), crops of 320x224.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/segvit_vitti_msrc.py --config.data.root=MSRC \
        --config.init_from=VIT_TINY.npz --workdir=runs/segvit_vitti_msrc
    python eval.py --config=configs/segvit_vitti_msrc.py --config.data.root=MSRC \
        --workdir=runs/segvit_vitti_msrc

VIT_TINY.npz: AugReg's ViT-Ti/16, ImageNet-21k then ImageNet-1k, or timm's copy (docs/weights.md).
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.data.root = "data/msrc"
    config.data.train, config.data.val = "train", "val"
    config.data.ignore = ("void", "horse", "mountain")  # too rare: leaving them out is usual
    config.data.resize = (320, 224)
    config.data.crop = (224, 320)
    config.eval.resize = ()
    config.eval.foreground = (
        *("cow", "sheep", "aeroplane", "face", "car", "bicycle", "flower", "sign"),
        *("bird", "book", "chair", "cat", "dog", "body", "boat"),
    )
    return finish(config, arg)
