"""SViT on DeiT-S, ImageNet-1k, 224x224: gates before layers 4 to 12 skip tokens.

Published: 79.4 top-1 at 3.0 GMACs, 1.47 times the images/s of DeiT-S (A100, batch 512); not
measured by us. GMACs at its targets (method.selection=static): 2.95. Training: 37 534 steps of 1024
images from DeiT-S's weights, on four GPUs in the original; its RandAugment, its random erasing and
its moving average of the weights (decay 0.99996; optim.ema here) are left out.

    python train.py --config=configs/svit_vits_imagenet.py --config.data.root=IMAGENET \
        --config.init_from=deit_small_patch16_224-cd65a155.pth --workdir=runs/svit_vits_imagenet
    python eval.py --config=configs/svit_vits_imagenet.py --config.data.root=IMAGENET \
        --workdir=runs/svit_vits_imagenet

IMAGENET: configs/vits_imagenet.py. The released weights need no training:

    python -m jaxseg.tools.convert svit_s.pth --config=configs/svit_vits_imagenet.py \
        --out=runs/svit_vits_imagenet

The class token goes through every block, where the released code lets the gate of layer 12 skip it.
That code draws at evaluation: --config.method.selection=sampled.
"""

from configs import vits_imagenet
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = vits_imagenet.finetuned("svit", lr=2e-5, end_lr=1e-6)
    config.model.norm_epsilon = 1e-5  # that of the released blocks, not DeiT's
    return finish(config, arg)
