"""The policy of CTS on CamVid, 480x352: which windows of 32x32 pixels show one class.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/policy_cts_camvid.py --config.data.root=CAMVID \
        --workdir=runs/policy_cts_camvid
    python eval.py --config=configs/policy_cts_camvid.py --config.data.root=CAMVID \
        --workdir=runs/policy_cts_camvid

The paper starts from EfficientNet-Lite0 trained on ImageNet (--config.init_from=FILE, timm's
"efficientnet_lite0"); without it the network starts from random numbers. 66 windows are 40 % of
those of an image: 462 of 660 tokens are left.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.task = "policy"
    config.method.merge = "cts"
    config.method.windows = 66
    config.optim.lr = 1e-3
    config.optim.lr_multipliers = ()
    config.optim.weight_decay = 1e-3
    config.train.steps = 400
    config.train.eval_every = 100
    config.optim.warmup_steps = 50
    return finish(config, arg)
