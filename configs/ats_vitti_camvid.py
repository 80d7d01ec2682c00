"""ATS on SegViT with ViT-Ti, CamVid, 480x352: tokens are sampled in layers 4, 7, 10.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/ats_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/ats_vitti_camvid
    python eval.py --config=configs/ats_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/ats_vitti_camvid

The paper samples in each of the layers 4 to 12, as many points as there are patches: name those in
--config.method.layers and as many times 1.0 in --config.method.keep.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, choosing


def get_config(arg: str = "") -> ConfigDict:
    return choosing(segvit_vitti_camvid.get_config(), arg, "ats", finetune_steps=300)
