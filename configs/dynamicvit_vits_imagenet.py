"""DynamicViT on DeiT-S, ImageNet-1k, 224x224: predictors before layers 4, 7, 10 drop tokens.

Published: 79.3 top-1 at 3.0 GMACs (2.9 in its repository), distilled from DeiT-S; not measured by
us. Training: 37 534 steps of 1024 images from DeiT-S's weights, which also teach (eight GPUs in the
original); its RandAugment and random erasing are left out.

    python train.py --config=configs/dynamicvit_vits_imagenet.py --config.data.root=IMAGENET \
        --config.init_from=deit_small_patch16_224-cd65a155.pth \
        --workdir=runs/dynamicvit_vits_imagenet
    python eval.py --config=configs/dynamicvit_vits_imagenet.py --config.data.root=IMAGENET \
        --workdir=runs/dynamicvit_vits_imagenet

IMAGENET: configs/vits_imagenet.py. In the original the backbone stands still for five epochs; here
all rates warm up in these.
"""

from configs import vits_imagenet
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = vits_imagenet.get_config()
    config.method.name = "dynamicvit"
    config.method.ratio_weight, config.method.distil = 2.0, 0.5
    config.optim.lr_multipliers = (("^(vit|heads)", 0.01),)
    config.optim.freeze = ("class_token", "pos_embed")
    config.optim.no_decay = (r"^(vit|heads).*\.bias$", r"^(vit|heads).*\.scale$")
    config.train.steps = round(30 * vits_imagenet.EPOCH)
    return finish(config, arg)
