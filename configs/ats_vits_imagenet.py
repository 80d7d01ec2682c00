"""ATS on DeiT-S, ImageNet-1k, 224x224: tokens sampled in layers 4 to 12, as many as an image needs.

Published: 79.7 top-1 after 30 epochs from DeiT-S; not measured by us. How many tokens are sampled
depends on weights and images, so that GMACs are known after eval.py alone; attention in the layers
that sample is counted for all tokens, because it is computed for all. Training here: 37 534 steps
of 1024 images by EViT's recipe; ATS has no parameters and works without, too:

    python -m jaxseg.tools.convert deit_small_patch16_224-cd65a155.pth \
        --config=configs/ats_vits_imagenet.py --out=runs/ats_vits_imagenet

    python train.py --config=configs/ats_vits_imagenet.py --config.data.root=IMAGENET \
        --config.init_from=deit_small_patch16_224-cd65a155.pth --workdir=runs/ats_vits_imagenet
    python eval.py --config=configs/ats_vits_imagenet.py --config.data.root=IMAGENET \
        --workdir=runs/ats_vits_imagenet

IMAGENET: configs/vits_imagenet.py.
"""

from configs import vits_imagenet
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = vits_imagenet.finetuned("ats", lr=4e-5, end_lr=2e-6)
    config.method.layers = tuple(range(4, 13))
    config.method.keep = (1.0,) * 9  # as many points as there are patches
    return finish(config, arg)
