"""DToP on SegViT with ViT-Ti, CamVid, 480x352: easy tokens leave after layers 6 and 8.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

DToP@Finetune: starts from the dense model of segvit_vitti_camvid, all weights trained.

    python train.py --config=configs/dtop_segvit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/dtop_segvit_vitti_camvid
    python eval.py --config=configs/dtop_segvit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/dtop_segvit_vitti_camvid

DToP@Direct needs no training: evaluate the dense model's workdir with this configuration.
DToP@Retrain: configs/dtop_segvit_vitti_camvid.py:retrain, from the ImageNet weights. Heads only, as
the paper describes Finetune (its released code trains everything): ":heads_only".
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.method.name = "dtop"
    config.method.exit6.threshold = 0.95
    config.method.exit8.threshold = 0.95
    if arg == "retrain":
        return config
    config.optim.warmup_steps = 20
    config.optim.lr = 5e-5
    config.train.steps = 400
    config.train.eval_every = 200
    if arg == "heads_only":
        config.optim.freeze = ("^vit",)
        return config
    return finish(config, arg)
