"""Reading image and label files with Pillow, and refusing what would train silently wrong."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxseg.errors import UserError

# Pillow stretches 2- and 4-bit grey PNGs to 0..255; a label needs the stored numbers back.
_GREY_STEP = {"L;2": 85, "L;4": 17}


def read_image(path: str | Path) -> np.ndarray:
    """The picture as uint8[H,W,3] RGB, turned upright as its EXIF tag says.

    Grey is repeated, alpha dropped, CMYK converted and 16-bit grey cut to its high byte.

    Raises UserError: the file is missing, broken, no image, or beyond Pillow's size limit.
    """
    with _reading(path, "image"), Image.open(path) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way
        return np.array(image.convert("RGB"))


def read_label(path: str | Path) -> np.ndarray:
    """Stored numbers of a single-channel PNG as uint8[H,W]; palette colours are not applied.

    Raises UserError: missing or broken file, JPEG (compression invents class numbers), colour or
    16-bit pixels.
    """
    with _reading(path, "label"), Image.open(path) as image:
        if image.format == "JPEG":
            raise UserError(
                f"{path}: label is a JPEG, whose compression changes class numbers: "
                "save labels as single-channel PNG with class indices"
            )
        if image.mode not in ("1", "L", "P"):
            raise UserError(
                f"{path}: label pixels are {image.mode}, not one 8-bit channel: "
                "convert colours to class indices and save a single-channel PNG"
            )
        step = np.uint8(_GREY_STEP.get(image.tile[0].args, 1))
        return np.asarray(image).astype(np.uint8) // step


def read_pair(image_path: str | Path, label_path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[H,W,3] RGB, uint8[H,W] stored label numbers) of one example.

    Raises UserError: as `read_image` and `read_label`, or their sizes differ.
    """
    image, label = read_image(image_path), read_label(label_path)
    if image.shape[:2] == label.shape:
        return image, label
    mend = "resize the label with nearest neighbour"
    with Image.open(image_path) as stored:
        if stored.size[::-1] == label.shape:
            mend = (
                "the label fits the image before its EXIF turn, so turn the label "
                "or remove the image's orientation tag"
            )
    raise UserError(
        f"{label_path}: label is {_size(label)} but its image {image_path} is "
        f"{_size(image)} (height x width): {mend}"
    )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"


@contextlib.contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    """Turns Pillow's errors into UserErrors about ``path``."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: {what} has more than {2 * Image.MAX_IMAGE_PIXELS} pixels, "
            "which is refused as a decompression bomb: make it smaller"
        ) from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = " ".join(str(error).replace(str(path), "it").split())
        raise UserError(
            f"{path}: cannot read this {what} ({reason}): replace the file, "
            "or remove it together with its partner"
        ) from None
