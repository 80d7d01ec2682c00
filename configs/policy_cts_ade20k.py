"""The policy of CTS on ADE20K, 512x512: which windows of 32x32 pixels show one class.

Published: nothing about the policy by itself; CTS with it on Segmenter ViT-L, 640x640: 51.6 mIoU
(51.8 dense) at 30 % fewer tokens. EfficientNet-Lite0 takes 1.90 GMACs.
Ours: not measured (docs/results.md). Hardware of the original: one A100, 50 k steps of 8 images.

    python train.py --config=configs/policy_cts_ade20k.py --config.data.root=DATA \
        --config.init_from=LITE0.safetensors --workdir=runs/policy_cts_ade20k
    python eval.py --config=configs/policy_cts_ade20k.py --config.data.root=DATA \
        --workdir=runs/policy_cts_ade20k

LITE0: timm's "efficientnet_lite0" (not the "tf_" one). Departure: the original warps whole images
to 512x512, here they are scaled and cropped as the segmenter's are. 103 windows are 40 % of those
of an image.
DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md).
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.task = "policy"
    config.data.resize = config.eval.resize = (2048, 512)
    config.data.crop = config.eval.crop = (512, 512)
    config.data.distort = False
    config.policy.border = True
    config.method.merge = "cts"
    config.method.windows = 103
    config.optim.lr = 5e-5
    config.optim.lr_multipliers = ()
    config.optim.weight_decay = 1e-3
    config.optim.warmup_steps = 0
    config.optim.power = 0.0  # constant
    config.train.batch_size = 8
    config.train.steps = 50_000
    config.train.eval_every = 10_000
    return finish(config, arg)
