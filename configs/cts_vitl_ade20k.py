"""CTS on SegViT with ViT-L, ADE20K, 640x640: 160 windows of 2x2 patches share a token each.

Published: (STEP, table 2) dense 53.0 mIoU at 624 GMACs, CTS 52.0 at 410, which includes the policy;
with DToP 51.2 at 334.
Ours: not measured (docs/results.md). Hardware of the original: A100.

    python train.py --config=configs/cts_vitl_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --config.method.policy=runs/policy_cts_ade20k \
        --workdir=runs/cts_vitl_ade20k
    python eval.py --config=configs/cts_vitl_ade20k.py --config.data.root=DATA \
        --workdir=runs/cts_vitl_ade20k

1120 of 1600 tokens are left. ":dtop" adds DToP's exits after layers 8 and 16 (CTS & DToP).
DATA, AUGREG.npz: see segvit_vitl_ade20k.
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.method.merge = "cts"
    config.method.windows = 160
    config.method.policy = "runs/policy_cts_ade20k"
    if arg == "dtop":
        config.method.name, arg = "dtop", ""
        config.method.exit8.threshold = config.method.exit16.threshold = 0.9
    return finish(config, arg)
