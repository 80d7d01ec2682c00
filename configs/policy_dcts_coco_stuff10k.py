"""The policy of dCTS (STEP) on COCO-Stuff-10K, 512x512: windows of 2, 4, 8 and 16 patches.

Published: mean tokens of 1024 that STEP's GFLOPs imply: 527 at tau-6899, 466 at tau-4999.
EfficientNet-Lite0 takes 1.90 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: one A100.

    python train.py --config=configs/policy_dcts_coco_stuff10k.py --config.data.root=DATA \
        --config.init_from=LITE0.safetensors --workdir=runs/policy_dcts_coco_stuff10k
    python eval.py --config=configs/policy_dcts_coco_stuff10k.py --config.data.root=DATA \
        --workdir=runs/policy_dcts_coco_stuff10k

Trained as policy_dcts_ade20k. LITE0: see there.
DATA: python -m jaxseg.tools.prepare_data --name=coco_stuff10k (docs/datasets.md).
"""

from configs import policy_dcts_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = policy_dcts_ade20k.get_config()
    config.data.name = "coco_stuff10k"
    config.data.val = config.data.test = "test"
    config.data.resize = config.eval.resize = (2048, 512)
    config.data.crop = config.eval.crop = (512, 512)
    config.policy.border = False
    return finish(config, arg)
