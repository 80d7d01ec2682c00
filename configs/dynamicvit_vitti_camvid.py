"""DynamicViT on SegViT with ViT-Ti, CamVid, 480x352: tokens are dropped before layers 4, 7, 10.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/dynamicvit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/dynamicvit_vitti_camvid
    python eval.py --config=configs/dynamicvit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/dynamicvit_vitti_camvid

The dense model of init_from is the teacher, too; --config.method.distil=0 does without.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, choosing


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.method.update(ratio_weight=2.0, distil=0.5)
    return choosing(config, arg, "dynamicvit", finetune_steps=300)
