"""SETR-naive on ViT-Ti, CamVid, 480x352: 660 tokens.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/setr_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=VIT_TINY.npz --workdir=runs/setr_vitti_camvid
    python eval.py --config=configs/setr_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/setr_vitti_camvid

VIT_TINY.npz: AugReg's ViT-Ti/16, ImageNet-21k then ImageNet-1k, or timm's copy (docs/weights.md).
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.model.class_token = True
    config.model.final_norm = True
    config.model.head = "conv"
    config.model.head_layers = 1
    return finish(config, arg)
