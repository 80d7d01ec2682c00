"""Evo-ViT on SegViT with ViT-Ti, CamVid, 480x352: tokens wait in layers 5 to 12.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/evovit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/evovit_vitti_camvid
    python eval.py --config=configs/evovit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/evovit_vitti_camvid

Half of the tokens go through each of these layers, as published.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, choosing


def get_config(arg: str = "") -> ConfigDict:
    return choosing(segvit_vitti_camvid.get_config(), arg, "evovit", finetune_steps=300)
