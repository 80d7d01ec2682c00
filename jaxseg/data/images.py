"""Reading image and label files with Pillow, and refusing what would go silently wrong."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageOps

from jaxseg.errors import UserError

# Some of Pillow's other formats are read by programs that it starts.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Pixels per byte of a file: a blank picture of one bit comes to 8,200 as a PNG and to 10,900 with
# LZW. What claims far more has a header that lies, and Pillow would make all of it, black. Formats
# (of TIFF: compressions) that are not named here have no such bound.
_MOST_PIXELS = 30_000
_BOUNDED = ("JPEG", "PNG", "BMP", "GIF", "PPM")
_BOUNDED += ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg")
# Pillow stretches 2- and 4-bit grey PNGs to 0..255; a label needs the stored numbers back.
_GREY_STEP = {"L;2": 85, "L;4": 17}
_OTHER_END = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_DEEP = {f"{channels};16{end}" for channels in ("RGB", "RGBA") for end in _OTHER_END}


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as RGB, turned upright as its EXIF tag says.

    Of several frames or pages the first. Grey is repeated, alpha dropped, CMYK converted; more than
    8 bits per channel become 8 as `to_eight_bits` says. Colour profiles are not applied.

    Raises UserError: the file is missing, broken, cut short, of none of `FORMATS`, holds numbers
    that `to_eight_bits` refuses, claims more pixels than it can hold, or is beyond Pillow's size
    limit.
    """
    with _reading(path, "image"), Image.open(path, formats=FORMATS) as image:
        _check_claim(path, image)
        deep = any(_raw_mode(tile) in _DEEP for tile in image.tile)
        ImageOps.exif_transpose(image, in_place=True)
        if deep:
            return to_eight_bits(_sixteen_bits(path, np.asarray(image)[:, :, :3]))
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.repeat(to_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def to_eight_bits(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Integers of up to 16 bits, or floats, as 0..255.

    Files do not say how many of 16 bits a camera filled. Full scale is the smallest of 8, 10, 12,
    14 and 16 bits that holds the largest value, and the highest 8 of those are kept: a 12-bit
    picture does not turn black, but a 16-bit one in deep shade comes out brighter than it was.
    Floats lie in 0..1, or in 0..255 where any is above 1.

    Raises ValueError: values beyond that, or NaN.
    """
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not 0 <= low <= high <= 255:
            raise ValueError(f"floats from {low:g} to {high:g}: save them as 0..1 or 0..255")
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    if not 0 <= low <= high < 65536:
        raise ValueError(f"integers from {low} to {high}: save them as 0..65535")
    bits = max(8, int(high).bit_length())
    return (values >> (bits + bits % 2 - 8)).astype(np.uint8)


def _sixteen_bits(
    path: str | Path, high: UInt8[np.ndarray, "H W 3"]
) -> UInt16[np.ndarray, "H W 3"]:
    """Values of 16-bit colour, of which Pillow gives but the ``high`` bytes."""
    if high.max() >= 64:  # all 16 bits are used: the low ones would be dropped again
        return high.astype(np.uint16) << 8
    with Image.open(path, formats=FORMATS) as image:
        # Read in the other byte order the low bytes are the high ones.
        image.tile = [_turned_round(tile) for tile in image.tile]
        ImageOps.exif_transpose(image, in_place=True)
        return (high.astype(np.uint16) << 8) | np.asarray(image)[:, :, :3]


def _raw_mode(tile) -> object:
    """How pixels lie in a file, such as RGB;16B, the last letter being the byte order."""
    return tile.args[0] if isinstance(tile.args, tuple) else tile.args


def _turned_round(tile):
    raw = _raw_mode(tile)
    raw = raw[:-1] + _OTHER_END[raw[-1]]
    return tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)


def read_label(path: str | Path) -> np.ndarray:
    """Stored numbers of a single-channel PNG as uint8[H,W]; palette colours are not applied.

    Raises UserError: missing or broken file, JPEG (compression invents class numbers), colour or
    16-bit pixels.
    """
    with _reading(path, "label"), Image.open(path, formats=FORMATS) as image:
        _check_claim(path, image)
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
    with Image.open(image_path, formats=FORMATS) as stored:
        if stored.size[::-1] == label.shape:
            mend = (
                "the label fits the image before its EXIF turn, so turn the label "
                "or remove the image's orientation tag"
            )
    raise UserError(
        f"{label_path}: label is {_size(label)} but its image {image_path} is "
        f"{_size(image)} (height x width): {mend}"
    )


def _check_claim(path: str | Path, image: Image.Image) -> None:
    kind = image.info.get("compression") if image.format == "TIFF" else image.format
    (width, height), size = image.size, os.path.getsize(path)
    if kind in _BOUNDED and width * height > _MOST_PIXELS * size:
        raise ValueError(f"it claims {width} x {height} pixels in {size} bytes")


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
        reason = " ".join(str(error).replace(repr(str(path)), "it").split())
        raise UserError(
            f"{path}: cannot read this {what} ({reason}): replace the file or leave it out"
        ) from None
