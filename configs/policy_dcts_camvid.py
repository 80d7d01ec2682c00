"""The policy of dCTS (STEP) on CamVid, 480x352: windows of 2, 4, 8 and 16 patches of one class.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/policy_dcts_camvid.py --config.data.root=CAMVID \
        --workdir=runs/policy_dcts_camvid
    python eval.py --config=configs/policy_dcts_camvid.py --config.data.root=CAMVID \
        --workdir=runs/policy_dcts_camvid

The thresholds are STEP's tau-6899. The paper starts from EfficientNet-Lite0 trained on ImageNet
(--config.init_from=FILE, timm's "efficientnet_lite0"). Labels of large windows are rarely of one
class to the last pixel: 98 % are asked for from 8 x 8 patches on.
"""

from configs import policy_cts_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = policy_cts_camvid.get_config()
    config.policy.sides = (2, 4, 8, 16)
    config.policy.purity = (1.0, 1.0, 0.98, 0.98)
    config.method.merge = "dcts"
    config.method.tau2, config.method.tau4 = 0.6, 0.8
    config.method.tau8, config.method.tau16 = 0.9, 0.9
    return finish(config, arg)
