"""DToP on SegViT with ViT-Ti, MSRC v2, 320x224: easy tokens leave after layers 6 and 8.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/dtop_segvit_vitti_msrc.py --config.data.root=MSRC \
        --config.init_from=runs/segvit_vitti_msrc/model.safetensors \
        --workdir=runs/dtop_segvit_vitti_msrc
    python eval.py --config=configs/dtop_segvit_vitti_msrc.py --config.data.root=MSRC \
        --workdir=runs/dtop_segvit_vitti_msrc

This is DToP@Finetune: from the dense model, all weights trained. ":heads_only" trains the heads
alone. DToP@Direct trains nothing: evaluate the dense model's workdir with this configuration.
DToP@Retrain is ":retrain", as the dense model was trained.
"""

from configs import segvit_vitti_msrc
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_msrc.get_config()
    config.method.exit6.threshold = config.method.exit8.threshold = 0.95
    if arg != "retrain":
        config.optim.lr, config.optim.warmup_steps, config.train.eval_every = 5e-5, 20, 200
    return dtop(config, arg, finetune_steps=400)
