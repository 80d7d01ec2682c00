"""SegViT with DToP's decoupled heads on ViT-Ti, CamVid, 480x352: 660 tokens.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/segvit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=VIT_TINY.npz --workdir=runs/segvit_vitti_camvid
    python eval.py --config=configs/segvit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/segvit_vitti_camvid

VIT_TINY.npz: AugReg's ViT-Ti/16, ImageNet-21k then ImageNet-1k, or timm's copy (docs/weights.md).
"""

from jaxseg.config import ConfigDict, defaults, finish


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.data.root = "data/camvid"
    # The published validation images come from a training sequence; 0006R0 is a sequence apart.
    config.data.train = "train/!0006R0*+val"
    config.data.val = "train/0006R0*"
    config.data.ignore = ("void",)
    config.data.resize = (480, 360)
    config.data.crop = (352, 480)
    config.model.variant = "Ti"
    config.model.drop_path = 0.05
    config.model.head_width = 192
    config.model.head_heads = 3
    config.optim.lr = 2e-4
    config.optim.lr_multipliers = (("^heads", 5.0),)
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0
    config.optim.warmup_steps = 100
    config.train.batch_size = 8
    config.train.steps = 2_400
    config.train.log_every = 10
    config.train.eval_every = 600
    config.train.checkpoint_every = 100
    config.eval.mode = "whole"
    config.eval.resize = (480, 352)
    config.eval.batch_size = 1
    config.eval.foreground = ("pole", "sign_symbol", "car", "pedestrian", "bicyclist")
    return finish(config, arg)
