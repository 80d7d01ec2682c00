"""SViT on SegViT with ViT-Ti, CamVid, 480x352: gates before layers 4 to 12 skip tokens.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/svit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/svit_vitti_camvid
    python eval.py --config=configs/svit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/svit_vitti_camvid

Evaluation is reproducible: an image's round(sum of p) most probable tokens go through a block. With
--config.method.selection=sampled it draws as the released code does, with =static it takes the same
number from every image.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, choosing


def get_config(arg: str = "") -> ConfigDict:
    return choosing(segvit_vitti_camvid.get_config(), arg, "svit", finetune_steps=300)
