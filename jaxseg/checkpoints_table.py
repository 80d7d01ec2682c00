"""The table of public checkpoints: only what their publishers state, see docs/checkpoints.md."""

from dataclasses import dataclass

_AUGREG = "https://storage.googleapis.com/vit_models/augreg"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
_DEIT = "https://dl.fbaipublicfiles.com/deit"
_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"
_SEGVIT = "https://huggingface.co/Akide/SegViTv1/resolve/1cfdaf61e504fb2bd81753425711b5e579b34b69"
_SEGMENTER = "https://www.rocq.inria.fr/cluster-willow/rstrudel/segmenter/checkpoints"
_ACADEMIC = "adelaidet-non-commercial"


@dataclass(frozen=True)
class Checkpoint:
    """What upstream publishes.

    kind: "vit" (a backbone alone), or the segmenter, as `jaxseg.convert.kinds` calls it;
    "segvit_shrunk" is not converted. what: model, data and, of a segmenter, single-scale mIoU in %.
    size: bytes, rounded as published, or None. sha256: the digest or its first digits, or None.
    """

    name: str
    kind: str
    address: str
    what: str
    licence: str
    size: int | None = None
    sha256: str | None = None


def _augreg(size: str, first: str, second: str, pixels: int) -> Checkpoint:
    file = f"{size}_16-i21k-300ep-lr_0.001-{first}--imagenet2012-steps_20k-{second}"
    return Checkpoint(
        f"augreg-vit{size.lower()}-{pixels}",
        "vit",
        f"{_AUGREG}/{file}-res_{pixels}.npz",
        f"ViT-{size}/16, ImageNet-21k then -1k, {pixels}",
        "Apache-2.0",
    )


def _hashed(name: str, kind: str, address: str, what: str) -> Checkpoint:
    """The last eight digits of the file name are the first of the sha256.

    OpenMMLab, DeiT and timm name their files so.
    """
    digest = address.rpartition("-")[2].removesuffix(".pth")
    return Checkpoint(name, kind, address, what, "Apache-2.0", sha256=digest)


def _mmseg(name: str, kind: str, folder: str, stamp: str, what: str) -> Checkpoint:
    """OpenMMLab's layout: a folder per model that starts the name of the file."""
    file = f"{folder.rpartition('/')[2]}_{stamp}.pth"
    return _hashed(name, kind, f"{_MMSEG}/{folder}/{file}", what)


def _segvit(name: str, file: str, what: str, gigabytes: float) -> Checkpoint:
    size = round(gigabytes * 1e9)
    kind = "segvit_shrunk" if "shrunk" in name else "segvit"
    return Checkpoint(name, kind, f"{_SEGVIT}/{file}", what, _ACADEMIC, size)


def _segmenter(name: str, folder: str, what: str) -> Checkpoint:
    return Checkpoint(
        name, "segmenter", f"{_SEGMENTER}/{folder}/checkpoint.pth", f"Segmenter {what}", "MIT"
    )


_NAIVE, _PUP = "setr/setr_naive_", "setr/setr_pup_"
_ADE160K, _CITY80K = "512x512_160k_b16_ade20k", "vit-large_8x1_768x768_80k_cityscapes"
_ADE8X1 = "mask_8x1_512x512_160k_ade20k"
_PRETRAIN = f"{_MMSEG}/pretrain/segmenter/vit"

CHECKPOINTS = (
    # The files that timm takes for *.augreg_in21k_ft_in1k; DToP starts from B and L at 384.
    *(
        _augreg(size, first, second, pixels)
        for size, first, second in (
            ("Ti", "aug_none-wd_0.03-do_0.0-sd_0.0", "lr_0.03"),
            ("S", "aug_light1-wd_0.03-do_0.0-sd_0.0", "lr_0.03"),
            ("B", "aug_medium1-wd_0.1-do_0.0-sd_0.0", "lr_0.01"),
            ("L", "aug_medium1-wd_0.1-do_0.1-sd_0.1", "lr_0.01"),
        )
        for pixels in (224, 384)
    ),
    # The first ViT paper's weights in timm's layout: SegViT's ViT-B and SETR start from them.
    _hashed(
        "vit-orig-vitb-384",
        "vit",
        f"{_TIMM}/jx_vit_base_p16_384-83fb41ba.pth",
        "ViT-B/16, ImageNet-21k then -1k, 384",
    ),
    _hashed(
        "vit-orig-vitl-384",
        "vit",
        f"{_TIMM}/jx_vit_large_p16_384-b3be5167.pth",
        "ViT-L/16, ImageNet-21k then -1k, 384",
    ),
    *(
        _hashed(f"deit-vit{s.lower()}-{pixels}", "vit", f"{_DEIT}/{file}.pth", what)
        for s, pixels, file, what in (
            ("Ti", 224, "deit_tiny_patch16_224-a1311bcf", "DeiT-Ti/16, ImageNet-1k, 224"),
            ("S", 224, "deit_small_patch16_224-cd65a155", "DeiT-S/16, ImageNet-1k, 224"),
            ("B", 224, "deit_base_patch16_224-b5f2ef4d", "DeiT-B/16, ImageNet-1k, 224"),
            ("B", 384, "deit_base_patch16_384-8de9b5d1", "DeiT-B/16, ImageNet-1k, 384"),
        )
    ),
    # AugReg at 384 in mmsegmentation's layout: what DToP's and mmsegmentation's configs name.
    *(
        _hashed(
            f"mmseg-vit{s.lower()}-384",
            "vit",
            f"{_PRETRAIN}_{word}_p16_384_20220308-{digest}.pth",
            f"ViT-{s}/16, ImageNet-21k then -1k, 384",
        )
        for s, word, digest in (
            ("Ti", "tiny", "cce8c795"),
            ("S", "small", "410f6037"),
            ("B", "base", "96dfe169"),
            ("L", "large", "d4efb41d"),
        )
    ),
    # Three auxiliary heads each: early exits on real weights without any training.
    _mmseg(
        "setr-naive-vitl-ade20k",
        "setr",
        _NAIVE + _ADE160K,
        "20210619_191258-061f24f5",
        "SETR-Naive ViT-L, ADE20K 512, 48.28",
    ),
    _mmseg(
        "setr-pup-vitl-ade20k",
        "setr",
        _PUP + _ADE160K,
        "20210619_191343-7e0ce826",
        "SETR-PUP ViT-L, ADE20K 512, 48.24",
    ),
    _mmseg(
        "setr-naive-vitl-cityscapes",
        "setr",
        _NAIVE + _CITY80K,
        "20211123_000505-20728e80",
        "SETR-Naive ViT-L, Cityscapes 768, 78.10",
    ),
    _mmseg(
        "setr-pup-vitl-cityscapes",
        "setr",
        _PUP + _CITY80K,
        "20211122_155115-f6f37b8f",
        "SETR-PUP ViT-L, Cityscapes 768, 79.21",
    ),
    _segvit("segvit-vitb-ade20k", "ade_51.3.pth", "SegViT ViT-B, ADE20K 512, 51.3", 1.31),
    _segvit("segvit-vitl-ade20k", "ade_54.6.pth", "SegViT ViT-L, ADE20K 640, 54.6", 4.13),
    _segvit(
        "segvit-shrunk-vitl-ade20k",
        "ade_shrunk_53.9.pth",
        "SegViT ViT-L shrunk, ADE20K 640, 53.9",
        4.14,
    ),
    _segvit(
        "segvit-vitl-coco-stuff10k",
        "COCOstuff_49.9.pth",
        "SegViT ViT-L, COCO-Stuff-10K 512, 49.9",
        4.13,
    ),
    _segvit(
        "segvit-shrunk-vitl-coco-stuff10k",
        "COCOstuff10k_shrunk_49.1.pth",
        "SegViT ViT-L shrunk, COCO-Stuff-10K 512, 49.1",
        4.13,
    ),
    _segvit(
        "segvit-vitl-pascal-context",
        "PC59cls_64.1.pth",
        "SegViT ViT-L, Pascal-Context 480, 64.1",
        4.12,
    ),
    _segvit(
        "segvit-shrunk-vitl-pascal-context",
        "PC59cls_62.3.pth",
        "SegViT ViT-L shrunk, Pascal-Context 480, 62.3",
        4.12,
    ),
    _segmenter("segmenter-vitti-ade20k", "ade20k/seg_tiny_mask", "ViT-Ti, ADE20K 512, 38.1"),
    _segmenter("segmenter-vits-ade20k", "ade20k/seg_small_mask", "ViT-S, ADE20K 512, 45.3"),
    _segmenter("segmenter-vitb-ade20k", "ade20k/seg_base_mask", "ViT-B, ADE20K 512, 48.5"),
    _segmenter("segmenter-vitl-ade20k", "ade20k/seg_large_mask_640", "ViT-L, ADE20K 640, 51.8"),
    _segmenter(
        "segmenter-vitl-pascal-context",
        "pascal_context/seg_large_mask",
        "ViT-L, Pascal-Context 480, 58.1",
    ),
    _segmenter(
        "segmenter-vitl-cityscapes", "cityscapes/seg_large_mask", "ViT-L, Cityscapes 768, 79.1"
    ),
    # mmsegmentation's own training of Segmenter: better, and with digests.
    *(
        _mmseg(
            f"mmseg-segmenter-vit{s.lower()}-ade20k",
            "mmseg_segmenter",
            f"segmenter/segmenter_vit-{s[0].lower()}_{_ADE8X1}",
            stamp,
            f"Segmenter ViT-{s}, ADE20K {result}",
        )
        for s, stamp, result in (
            ("Ti", "20220105_151706-ffcf7509", "512, 39.99"),
            ("S", "20220105_151706-511bb103", "512, 46.19"),
            ("B", "20220105_151706-bc533b08", "512, 49.60"),
            ("L", "20220105_162750-7ef345be", "640, 52.16"),
        )
    ),
)
