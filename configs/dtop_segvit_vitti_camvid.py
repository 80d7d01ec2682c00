"""DToP on SegViT with ViT-Ti, CamVid, 480x352: easy tokens leave after layers 6 and 8.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/dtop_segvit_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --workdir=runs/dtop_segvit_vitti_camvid
    python eval.py --config=configs/dtop_segvit_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/dtop_segvit_vitti_camvid

This is DToP@Finetune: from the dense model, all weights trained. ":heads_only" trains the heads
alone. DToP@Direct trains nothing: evaluate the dense model's workdir with this configuration.
DToP@Retrain is ":retrain", as the dense model was trained.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.method.exit6.threshold = config.method.exit8.threshold = 0.95
    if arg != "retrain":
        config.optim.lr, config.optim.warmup_steps, config.train.eval_every = 2e-5, 20, 0
    return dtop(config, arg, finetune_steps=300)
