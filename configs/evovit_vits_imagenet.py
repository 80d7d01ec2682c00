"""Evo-ViT on DeiT-S, ImageNet-1k, 224x224: half of the tokens wait in layers 5 to 12.

Published: 79.4 top-1 at 3.0 GMACs after 300 epochs from scratch, 79.2 after 30 from DeiT-S; not
measured by us. Training here: 37 534 steps of 1024 images from DeiT-S's weights by EViT's recipe.

    python train.py --config=configs/evovit_vits_imagenet.py --config.data.root=IMAGENET \
        --config.init_from=deit_small_patch16_224-cd65a155.pth --workdir=runs/evovit_vits_imagenet
    python eval.py --config=configs/evovit_vits_imagenet.py --config.data.root=IMAGENET \
        --workdir=runs/evovit_vits_imagenet

IMAGENET: configs/vits_imagenet.py. The class token answers here. The released model answers by the
mean of all patches, and trains the class token beside it with a head of its own; it chooses before
layers 5 and 9 only.
"""

from configs import vits_imagenet
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    return finish(vits_imagenet.finetuned("evovit", lr=4e-5, end_lr=2e-6), arg)
