"""SegViT with DToP's decoupled heads on ViT-Ti, CamVid doubled to 960x720: 2700 tokens.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/segvit_vitti_camvid_2x.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/segvit_vitti_camvid_2x
    python eval.py --config=configs/segvit_vitti_camvid_2x.py --config.data.root=CAMVID \
        --workdir=runs/segvit_vitti_camvid_2x

Goes on from the weights of segvit_vitti_camvid: an image here costs seven times as much.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.data.resize = (960, 720)
    config.data.ratio = (0.75, 1.5)
    config.data.crop = (720, 960)
    config.optim.lr = 5e-5
    config.optim.warmup_steps = 20
    config.train.batch_size = 4
    config.train.steps = 300
    config.eval.resize = (960, 720)
    return finish(config, arg)
