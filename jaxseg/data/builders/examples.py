"""From the bytes in an archive to the bytes that are stored, checking every pixel on the way."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from jaxseg.data.classes import IGNORE
from jaxseg.errors import UserError

# What Pillow raises on truncated or foreign files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def jpeg(data: bytes, where: str) -> tuple[bytes, tuple[int, int]]:
    """(JPEG bytes, (height, width)) of a picture; ``where`` names it in errors.

    A grey or RGB JPEG keeps its own bytes. Anything else (CMYK, an EXIF turn, another format) is
    turned upright, converted to RGB and encoded at quality 95 without chroma subsampling.
    Raises UserError: the bytes are no readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if image.format != "JPEG" or image.mode not in ("L", "RGB") or turned:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                data = _encode(upright, format="JPEG", quality=95, subsampling=0)
                return data, (upright.height, upright.width)
            return data, (image.height, image.width)
    except _BROKEN as error:
        raise UserError(
            f"{where}: cannot read this image ({_one_line(error)}): get the archive again"
        ) from None


def png_label(data: bytes, where: str) -> np.ndarray:
    """Stored numbers uint8[H,W] of a PNG with one 8-bit channel or a palette.

    Raises UserError: broken file, another format, several channels (a map of colours or
    instances), 16-bit, or fewer than 8 bits of grey, which Pillow would stretch to 0..255.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            stored_as = image.tile[0].args if image.tile else None
            image.load()
    except _BROKEN as error:
        raise UserError(
            f"{where}: cannot read this label ({_one_line(error)}): get the archive again"
        ) from None
    stretched = image.mode == "L" and stored_as != "L"
    if image.format != "PNG" or image.mode not in ("L", "P") or stretched:
        hint = (
            "colours or instance maps are not class labels: use the semantic-segmentation archive"
            if image.mode in ("RGB", "RGBA")
            else "save it as PNG with one 8-bit channel"
        )
        raise UserError(
            f"{where}: label is a {image.format} of mode {image.mode} ({stored_as}), "
            f"not a PNG with one 8-bit channel of class numbers: {hint}"
        )
    return np.asarray(image)


def train_ids(stored: np.ndarray, label_ids: Sequence[int], where: str) -> np.ndarray:
    """uint8[H,W]: k where ``stored`` is ``label_ids[k]``, 255 (ignore) where it is 0.

    Raises UserError: any other number is stored.
    """
    table = np.full(256, -1, np.int16)
    table[0] = IGNORE
    table[list(label_ids)] = np.arange(len(label_ids))
    whole = (stored >= 0) & (stored <= 255) & (stored == np.floor(stored))
    ids = np.where(whole, table[np.where(whole, stored, 0).astype(np.uint8)], -1)
    if (ids < 0).any():
        row, column = np.argwhere(ids < 0)[0]
        raise UserError(
            f"{where}: label value {stored[row, column]:g} at row {row}, column {column} is not "
            f"one of the {len(label_ids)} classes ({label_ids[0]}..{label_ids[-1]}) nor 0: "
            "the labels are of another data set or encoding (docs/datasets.md)"
        )
    return ids.astype(np.uint8)


def png(label: np.ndarray) -> bytes:
    """uint8[H,W] as a PNG with one 8-bit channel."""
    return _encode(Image.fromarray(label), format="PNG")


def decode(data: bytes, mode: str) -> np.ndarray:
    """Stored bytes as a writable uint8 array: mode "RGB" [H,W,3], mode "L" [H,W]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert(mode))


def _encode(image: Image.Image, **options) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, **options)
        return buffer.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
