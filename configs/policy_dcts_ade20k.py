"""The policy of dCTS (STEP) on ADE20K, 640x640: windows of 2, 4, 8 and 16 patches of one class.

Published: nothing about the policy by itself. EfficientNet-Lite0 takes 2.97 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: one A100.

    python train.py --config=configs/policy_dcts_ade20k.py --config.data.root=DATA \
        --config.init_from=LITE0.safetensors --workdir=runs/policy_dcts_ade20k
    python eval.py --config=configs/policy_dcts_ade20k.py --config.data.root=DATA \
        --workdir=runs/policy_dcts_ade20k

STEP does not say how its policy is trained: this is CTS's way, with a head per side. The thresholds
are its tau-6899. LITE0, DATA: see policy_cts_ade20k.
"""

from configs import policy_cts_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = policy_cts_ade20k.get_config()
    config.data.resize = config.eval.resize = (2560, 640)
    config.data.crop = config.eval.crop = (640, 640)
    config.policy.sides = (2, 4, 8, 16)
    config.policy.purity = (1.0, 1.0, 0.98, 0.98)
    config.method.merge = "dcts"
    config.method.tau2, config.method.tau4 = 0.6, 0.8
    config.method.tau8, config.method.tau16 = 0.9, 0.9
    return finish(config, arg)
