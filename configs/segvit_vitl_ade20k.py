"""SegViT on ViT-L with DToP's decoupled heads, ADE20K, 640x640: a dense row of DToP.

Published: 53.3 mIoU (single scale, sliding window), 617.0 GMACs with the last head alone.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 160 k steps of 16 images.

    python train.py --config=configs/segvit_vitl_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --workdir=runs/segvit_vitl_ade20k
    python eval.py --config=configs/segvit_vitl_ade20k.py --config.data.root=DATA \
        --workdir=runs/segvit_vitl_ade20k

DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md). AUGREG.npz: AugReg's
ViT-L/16, ImageNet-21k then ImageNet-1k at 384 (docs/weights.md).
"""

from jaxseg.config import ConfigDict, defaults, finish


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.data.name = "ade20k"
    config.data.val = config.data.test = "validation"
    config.data.resize = config.eval.resize = (2560, 640)
    config.data.crop = config.eval.crop = (640, 640)
    config.eval.stride = (320, 320)
    config.model.variant = "L"
    config.model.taps = (7, 15, 23)
    config.model.drop_path = 0.3
    config.model.head_width = 512
    config.model.head_heads = 8
    return finish(config, arg)
