"""The whole way in minutes on two CPU cores, without any download: drawn shapes, a small ViT.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

For images of your own start from configs/own_data.py.
"""

from jaxseg.config import ConfigDict, defaults, finish


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.data.name = "shapes"
    config.data.count = (256, 32, 32)
    config.data.size = (128, 160)
    config.data.resize = (160, 128)
    config.data.ratio = (0.75, 1.5)
    config.data.crop = (128, 160)
    config.data.distort = False
    config.model.variant = "Ti"
    config.model.patch = 8
    config.model.drop_path = 0.0
    config.model.final_norm = True
    config.model.head = "conv"  # SETR: learns from random weights much faster than ATM heads
    config.model.head_width = 96
    config.model.head_layers = 1
    config.optim.lr = 1e-3
    config.optim.lr_multipliers = ()
    config.optim.clip_norm = 5.0
    config.optim.warmup_steps = 20
    config.train.batch_size = 8
    config.train.steps = 200
    config.train.log_every = 10
    config.train.eval_every = 0
    config.train.checkpoint_every = 50
    config.eval.mode = "whole"
    config.eval.resize = ()
    return finish(config, arg)
