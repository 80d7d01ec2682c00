"""The policy of CTS on COCO-Stuff-10K, 512x512: which windows of 32x32 pixels show one class.

Published: nothing about the policy by itself; CTS on SegViT ViT-L: 46.2 mIoU (46.7 dense) at 251
GMACs. EfficientNet-Lite0 takes 1.90 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: one A100.

    python train.py --config=configs/policy_cts_coco_stuff10k.py --config.data.root=DATA \
        --config.init_from=LITE0.safetensors --workdir=runs/policy_cts_coco_stuff10k
    python eval.py --config=configs/policy_cts_coco_stuff10k.py --config.data.root=DATA \
        --workdir=runs/policy_cts_coco_stuff10k

Trained as policy_cts_ade20k. LITE0: see there.
DATA: python -m jaxseg.tools.prepare_data --name=coco_stuff10k (docs/datasets.md).
"""

from configs import policy_cts_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = policy_cts_ade20k.get_config()
    config.data.name = "coco_stuff10k"
    config.data.val = config.data.test = "test"
    config.data.resize = config.eval.resize = (2048, 512)
    config.data.crop = config.eval.crop = (512, 512)
    config.policy.border = False
    return finish(config, arg)
