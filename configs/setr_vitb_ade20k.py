"""SETR-naive on ViT-B, ADE20K, 512x512: the dense SETR row of DToP.

Published: 47.0 mIoU (single scale, sliding window), 107.7 GMACs with the last head alone.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 160 k steps of 16 images.

    python train.py --config=configs/setr_vitb_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/setr_vitb_ade20k
    python eval.py --config=configs/setr_vitb_ade20k.py --config.data.root=DATA \
        --workdir=runs/setr_vitb_ade20k

DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md). AUGREG.npz: AugReg's
ViT-B/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).

DToP released no SETR recipe. One structure fits its published MACs best: class token kept, final
norm, one 1x1 convolution to 256 channels, classifier at 1/16 without inner up-sampling. Its exits
are after blocks 6 and 8, so the heads are there; the rest is that of its SegViT rows.
"""

from configs import segvit_vitb_ade20k
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitb_ade20k.get_config()
    config.model.class_token = True
    config.model.final_norm = True
    config.model.head = "conv"
    config.model.head_width = 256
    config.model.head_layers = 1
    return finish(config, arg)
