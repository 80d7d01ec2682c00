"""Training and test transforms: numpy and OpenCV on one image, randomness passed in.

The recipe is the one of mmsegmentation that DToP and SegViT train with: resize by a random ratio,
crop, flip, distort colours, normalise, pad. Images are RGB uint8[H,W,3] until `normalise`; labels
are uint8[H,W] with 255 = ignore. No function changes its input.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from jaxseg.data.classes import IGNORE

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Recipe:
    """Training transforms. Sizes in pixels; mean and std per RGB channel on the 0..255 scale.

    long, short: the image is resized to fit both sides, each times a ratio from U[ratio).
    crop: (height, width) that every training image has in the end.
    cat_max_ratio: a crop is redrawn where one class fills at least this share of its labelled
        pixels; 1.0 takes the first crop.
    flip: probability of mirroring.  distort: whether colours are distorted.
    """

    long: int
    short: int
    crop: tuple[int, int]
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def sample(self, sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`train_sample` by this recipe."""
        return train_sample(sample, self, rng)

    def batch(self, batch: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Nothing is done to examples together."""
        del rng
        return batch


def train_sample(
    sample: dict[str, np.ndarray | str], recipe: Recipe, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One augmented example: dict(image=float32[h,w,3], label=uint8[h,w]), (h, w) = recipe.crop."""
    image, label = sample["image"], sample["label"]
    ratio = rng.uniform(*recipe.ratio)
    size = keep_ratio_size(label.shape, int(recipe.long * ratio), int(recipe.short * ratio))
    image, label = resize(image, size, cv2.INTER_LINEAR), resize(label, size, cv2.INTER_NEAREST)
    window = crop_window(label, recipe.crop, recipe.cat_max_ratio, rng)
    image, label = image[window], label[window]
    if rng.random() < recipe.flip:
        image, label = cv2.flip(image, 1), label[:, ::-1]
    if recipe.distort:
        image = distort(image, rng)
    image = normalise(image, recipe.mean, recipe.std)
    return {
        "image": pad(image, recipe.crop, 0.0),
        "label": pad(label, recipe.crop, IGNORE),
    }


def test_image(
    image: np.ndarray,
    long: int | None,
    short: int | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> np.ndarray:
    """uint8[H,W,3] to normalised float32[h,w,3]; long = short = None keeps the size."""
    if long is not None:
        size = keep_ratio_size(image.shape[:2], long, short)
        image = resize(image, size, cv2.INTER_LINEAR)
    return normalise(image, mean, std)


def test_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[H,W] at another size, by nearest pixel."""
    return resize(label, size, cv2.INTER_NEAREST)


# No tests, whatever pytest makes of the names.
test_image.__test__ = test_label.__test__ = False


def keep_ratio_size(size: tuple[int, int], long: int, short: int) -> tuple[int, int]:
    """(height, width) scaled to the largest that fits: long side <= long, short side <= short.

    Rounds half up, and never below one pixel (mmcv fails on such strips).
    """
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resizes [H,W] or [H,W,3] to (height, width); interpolation is an OpenCV flag."""
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)


def crop_window(
    label: np.ndarray, crop: tuple[int, int], cat_max_ratio: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random crop, cut short where the image is smaller than the crop.

    With cat_max_ratio < 1 a crop is accepted when something is labelled in it and no class has
    cat_max_ratio or more of the labelled pixels, so never when it shows one class only. After ten
    refusals the eleventh is taken unseen, as mmseg does.
    """
    window = _draw_window(label.shape, crop, rng)
    if cat_max_ratio >= 1.0:
        return window
    for _ in range(10):
        counts = np.bincount(label[window].ravel(), minlength=256)
        counts[IGNORE] = 0
        if counts.max() < cat_max_ratio * counts.sum():
            break
        window = _draw_window(label.shape, crop, rng)
    return window


def _draw_window(
    size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    starts = [int(rng.integers(max(n - c, 0) + 1)) for n, c in zip(size, crop, strict=True)]
    rows, columns = (slice(s, s + c) for s, c in zip(starts, crop, strict=True))
    return rows, columns


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion of uint8[H,W,3] RGB; every step happens with probability 1/2.

    Brightness + U(-32, 32), contrast x U(0.5, 1.5), saturation x U(0.5, 1.5), hue + {-18..17} of
    OpenCV's 180; contrast goes second or last by a coin. Every step ends in uint8.
    """

    def coin() -> bool:
        return rng.random() < 0.5

    contrast_last = coin()
    if coin():
        image = scale_shift(image, 1.0, rng.uniform(-32, 32))
    if not contrast_last and coin():
        image = scale_shift(image, rng.uniform(0.5, 1.5), 0.0)
    if coin():
        image = scale_saturation(image, rng.uniform(0.5, 1.5))
    if coin():
        image = shift_hue(image, int(rng.integers(-18, 18)))
    if contrast_last and coin():
        image = scale_shift(image, rng.uniform(0.5, 1.5), 0.0)
    return image


def scale_shift(array: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """scale * array + shift in float32, clipped to 0..255 and truncated to uint8."""
    table = np.arange(256, dtype=np.float32) * np.float32(scale) + np.float32(shift)
    return cv2.LUT(array, np.clip(table, 0, 255).astype(np.uint8))


def scale_saturation(image: np.ndarray, scale: float) -> np.ndarray:
    """Multiplies the saturation of uint8[H,W,3] RGB in OpenCV's 8-bit HSV."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    hsv = cv2.merge([hue, scale_shift(saturation, scale, 0.0), value])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def shift_hue(image: np.ndarray, shift: int) -> np.ndarray:
    """Turns the hue of uint8[H,W,3] RGB by ``shift`` of 180 steps, in OpenCV's 8-bit HSV."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    table = ((np.arange(256) + shift) % 180).astype(np.uint8)
    return cv2.cvtColor(cv2.merge([cv2.LUT(hue, table), saturation, value]), cv2.COLOR_HSV2RGB)


def normalise(
    image: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """(image - mean) / std of uint8[H,W,3] as float32[H,W,3]."""
    # By table: the same float32 numbers as on the pixels, several times faster.
    table = (np.arange(256, dtype=np.float32)[:, None] - np.float32(mean)) / np.float32(std)
    return cv2.LUT(image, table[None])


def pad(array: np.ndarray, size: tuple[int, int], value: float) -> np.ndarray:
    """Fills [h,w,...] up to size (height, width) at the bottom and the right."""
    height, width = array.shape[:2]
    if (height, width) == size:
        return array
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded
