"""EViT on SegViT with ViT-Ti, CamVid, 480x352: tokens are fused in layers 4, 7, 10.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/evit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/evit_vitti_camvid
    python eval.py --config=configs/evit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/evit_vitti_camvid
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, choosing


def get_config(arg: str = "") -> ConfigDict:
    return choosing(segvit_vitti_camvid.get_config(), arg, "evit", finetune_steps=300)
