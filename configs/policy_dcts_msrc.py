"""The policy of dCTS (STEP) on MSRC v2, 320x224: windows of 2, 4 and 8 patches of one class.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/policy_dcts_msrc.py --config.data.root=MSRC \
        --workdir=runs/policy_dcts_msrc
    python eval.py --config=configs/policy_dcts_msrc.py --config.data.root=MSRC \
        --workdir=runs/policy_dcts_msrc

As policy_dcts_camvid; no window of 16 patches fits into these images.
"""

from configs import policy_dcts_camvid, segvit_vitti_msrc
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = policy_dcts_camvid.get_config()
    config.data.update(segvit_vitti_msrc.get_config().data)
    config.eval.update(segvit_vitti_msrc.get_config().eval)
    config.policy.sides = (2, 4, 8)
    config.policy.purity = (1.0, 1.0, 0.98)
    config.method.tau16 = 2.0
    return finish(config, arg)
