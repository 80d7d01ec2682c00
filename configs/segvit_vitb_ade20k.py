"""SegViT on ViT-B with DToP's decoupled heads, ADE20K, 512x512: a dense row of DToP.

Published: 49.7 mIoU (single scale, sliding window), 109.9 GMACs with the last head alone.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 160 k steps of 16 images.

    python train.py --config=configs/segvit_vitb_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_vitb_ade20k
    python eval.py --config=configs/segvit_vitb_ade20k.py --config.data.root=DATA \
        --workdir=runs/segvit_vitb_ade20k

DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md). AUGREG.npz: AugReg's
ViT-B/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).

The released base config stops at 40 k steps of a 160 k schedule; the paper implies all of it.
"""

from jaxseg.config import ConfigDict, defaults, finish


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.data.name = "ade20k"
    config.data.val = config.data.test = "validation"

    config.data.mean = (123.675, 116.28, 103.53)  # the released recipe takes ImageNet's here
    config.data.std = (58.395, 57.12, 57.375)
    return finish(config, arg)
