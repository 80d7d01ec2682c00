"""ViT-S that names the class of an image (DeiT-S), ImageNet-1k, 224x224: dense.

Published: 79.8 top-1 at 4.6 GMACs (DeiT); not measured by us. Training: 300 epochs, 375 342 steps
of 1024 images. RandAugment, random erasing and repeated augmentation of DeiT are left out.

    python train.py --config=configs/vits_imagenet.py --config.data.root=IMAGENET \
        --config.data.workers=16 --workdir=runs/vits_imagenet
    python eval.py --config=configs/vits_imagenet.py --config.data.root=IMAGENET \
        --workdir=runs/vits_imagenet

IMAGENET holds train/CLASS/x.JPEG and val/CLASS/x.JPEG. Of what tools.prepare_data has written with
--name=imagenet2012, and of tensorflow-datasets' own array_record, say
--config.data.name=imagenet2012 --config.data.val=validation --config.data.test=validation.

DeiT's own weights need no training: this writes a folder for eval.py.

    python -m jaxseg.tools.convert deit_small_patch16_224-cd65a155.pth \
        --config=configs/vits_imagenet.py --out=runs/vits_imagenet

AugReg's want another normalisation and crop: (127.5, 127.5, 127.5) as --config.data.mean and
--config.data.std, and --config.eval.crop_share=0.9.
"""

from jaxseg.config import ConfigDict, defaults, finish

EPOCH = 1_281_167 / 1024  # steps


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.task = "classify"
    config.data.name = "class_folder"
    config.data.val = config.data.test = "val"
    config.data.crop = config.eval.crop = (224, 224)
    config.data.mixup, config.data.cutmix = 0.8, 1.0
    config.data.mean = (123.675, 116.28, 103.53)
    config.data.std = (58.395, 57.12, 57.375)
    config.model.variant = "S"
    config.model.head, config.model.taps = "class", (11,)
    config.model.class_token = config.model.final_norm = True
    config.optim.lr, config.optim.end_lr = 1e-3, 1e-5
    config.optim.weight_decay = 0.05
    config.optim.no_decay = (r"\.bias$", r"\.scale$", "class_token", "pos_embed")
    config.optim.lr_multipliers = ()
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = round(5 * EPOCH)
    config.train.batch_size = 1024
    config.train.steps = round(300 * EPOCH)
    config.train.eval_every = 0
    config.eval.batch_size = 128
    return finish(config, arg)


def finetuned(method: str, lr: float, end_lr: float) -> ConfigDict:
    """30 epochs from a dense model, as SViT and EViT were; no warm-up, hardly any weight decay."""
    config = get_config()
    config.method.name = method
    config.optim.lr, config.optim.end_lr, config.optim.weight_decay = lr, end_lr, 1e-6
    config.optim.warmup_steps = 0
    config.train.steps = round(30 * EPOCH)
    return config
