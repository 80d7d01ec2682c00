"""Training and test transforms of classifiers: those of DeiT and timm, without RandAugment and
random erasing.

Images are RGB uint8[H,W,3] until they are normalised. Resizing is Pillow's bicubic, which averages
where it shrinks, as in the released code. No function changes its input.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise

_ASPECT = (3 / 4, 4 / 3)  # range of width over height of a random crop
_TRIES = 10


@dataclass(frozen=True)
class ClassRecipe:
    """Training transforms. mean and std per RGB channel on the 0..255 scale.

    crop: (height, width) of every training image. area: range of the share of an image that its
        random crop covers, before it is resized.  flip: probability of mirroring.
    smoothing: share of a label that is spread evenly over all ``classes``.
    mixup, cutmix: alpha of Beta(alpha, alpha) that the share of the first of two images is drawn
        from, once per batch; 0 = off. Where both are on, either has its turn with probability 1/2.
    """

    classes: int
    crop: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def sample(self, sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One augmented example: dict(image=float32[h,w,3], label=float32[classes])."""
        image = _resized(random_crop(sample["image"], self.area, rng), self.crop)
        if rng.random() < self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
        label = np.full(self.classes, self.smoothing / self.classes, np.float32)
        label[sample["label"]] += 1.0 - self.smoothing
        return {"image": normalise(image, self.mean, self.std), "label": label}

    def batch(self, batch: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Each example mixed with its mirror image in the order of the batch."""
        cuts = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        if alpha == 0:
            return batch
        mixed, share = (cutmix if cuts else mixup)(batch["image"], rng.beta(alpha, alpha), rng)
        share = np.float32(share)
        label = share * batch["label"] + (1 - share) * batch["label"][::-1]
        return {"image": mixed, "label": label}


def mixup(
    images: Float[np.ndarray, "B H W 3"], share: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "B H W 3"], float]:
    """(weighted means of image i and image B - 1 - i, the weight of the first) (Zhang 2018)."""
    del rng
    weight = np.float32(share)
    return weight * images + (1 - weight) * images[::-1], share


def cutmix(
    images: Float[np.ndarray, "B H W 3"], share: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "B H W 3"], float]:
    """(image i with a box of image B - 1 - i, the share of pixels that stay) (Yun 2019).

    The box has the image's aspect, 1 - ``share`` of its area and any centre; what reaches over the
    rim is cut off.
    """
    sides = images.shape[1:3]
    half = [int(side * math.sqrt(1.0 - share)) // 2 for side in sides]
    centre = [int(rng.integers(side)) for side in sides]
    box = tuple(
        slice(max(c - h, 0), min(c + h, side))
        for c, h, side in zip(centre, half, sides, strict=True)
    )
    mixed = images.copy()
    mixed[:, *box] = images[::-1][:, *box]
    covered = math.prod(part.stop - part.start for part in box)
    return mixed, 1.0 - covered / math.prod(sides)


def random_crop(
    image: UInt8[np.ndarray, "H W 3"], area: tuple[float, float], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A box of random area and aspect (Szegedy 2015), at its own size.

    Where ten draws do not fit into the image: the largest box in its middle of an allowed aspect.
    """
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(*map(math.log, _ASPECT)))
        h, w = (max(1, round(math.sqrt(n))) for n in (pixels / aspect, pixels * aspect))
        if h <= height and w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return image[top : top + h, left : left + w]
    h, w = min(height, round(width / _ASPECT[0])), min(width, round(height * _ASPECT[1]))
    return _middle(image, (max(1, h), max(1, w)))


def centre_crop(
    image: UInt8[np.ndarray, "H W 3"], crop: tuple[int, int], share: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of the image, resized so that ``crop`` is ``share`` of its shorter side.

    DeiT: 224 of 256 pixels.
    """
    height, width = image.shape[:2]
    tall, wide = (math.floor(side / share) for side in crop)
    if tall * width >= wide * height:
        size = (tall, width * tall // height)
    else:
        size = (height * wide // width, wide)
    return _middle(_resized(image, size), crop)


def _middle(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (round((n - s) / 2) for n, s in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (height, width)."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
