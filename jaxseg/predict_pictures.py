"""What is drawn of one prediction: label maps with colours, overlays with legends, exits.

For pictures of any size: nothing here takes more than about 16 bytes per pixel.
"""

import io
import math

import cv2
import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from jaxseg import viz
from jaxseg.data.classes import Classes
from jaxseg.exit_pictures import exit_map
from jaxseg.windows import Size

_JPEG_SIDE = 60_000  # pixels; the format ends at 65535, and a legend needs room
_STRIP = 64  # rows; mixing colours takes 100 bytes per pixel


def palette_png(labels: UInt8[np.ndarray, "H W"], classes: Classes) -> bytes:
    """A PNG of class numbers that viewers show in the colours of the classes."""
    picture = Image.fromarray(labels)
    picture.putpalette(np.asarray(classes.colours, np.uint8).reshape(-1).tolist())
    return encoded(picture, "PNG")


def overlay(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], classes: Classes
) -> UInt8[np.ndarray, "h w 3"]:
    """The prediction over the picture, above a legend of the classes on 0.1 % of it or more.

    As large as the picture, or as JPEG allows.
    """
    if max(labels.shape) > _JPEG_SIDE:
        size = limited(labels.shape, _JPEG_SIDE)
        image, labels = smaller(image, size), nearest(labels, size)
    mixed = np.empty_like(image)
    for top in range(0, len(image), _STRIP):
        rows = slice(top, top + _STRIP)
        mixed[rows] = viz.overlay(image[rows], labels[rows], classes)
    shown = np.flatnonzero(pixel_counts(labels, len(classes)) >= labels.size / 1000)
    names, colours = ([of_all[k] for k in shown] for of_all in (classes.names, classes.colours))
    return _with_legend(mixed, Classes(tuple(names), tuple(colours)))


def exits(
    image: UInt8[np.ndarray, "H W 3"], left: Int[np.ndarray, "h w"], layers: list[int]
) -> UInt8[np.ndarray, "H w 3"]:
    """Where pixels left (see `exit_map`) over the image at the size of ``left``, and a legend."""
    names = tuple(f"left after layer {layer}" for layer in layers)
    veiled = exit_map(smaller(image, left.shape), left, names, patch=1)
    return _with_legend(veiled, Classes(names, tuple(exit_colours(len(names)))))


def veil(left: Int[np.ndarray, "h w"], count: int) -> UInt8[np.ndarray, "h w 4"]:
    """What `exit_map` lays over any picture, as RGBA, for ``count`` exits.

    A black and a white picture under it tell colour and opacity.
    """
    black, white = (
        exit_map(np.full((*left.shape, 3), value, np.uint8), left, range(count), patch=1)
        for value in (0, 255)
    )
    opacity = 255 - (white - black)[..., :1]
    colour = np.rint(255.0 * black / np.maximum(opacity, 1)).clip(0, 255)
    return np.concatenate([colour, opacity], axis=-1).astype(np.uint8)


def exit_colours(count: int) -> list[tuple[int, int, int]]:
    """RGB of each exit in the maps, without the picture that shines through."""
    if not count:
        return []
    broad = np.tile(np.arange(count).repeat(5), (5, 1))  # because borders have lines
    return [tuple(rgb) for rgb in veil(broad, count)[2, 2::5, :3].tolist()]


def pixel_counts(labels: UInt8[np.ndarray, "H W"], classes: int) -> Int[np.ndarray, " classes"]:
    """Pixels of each class; by rows, because numpy turns what it counts into 64-bit numbers."""
    return sum(np.bincount(row, minlength=classes) for row in labels)


def nearest(array: Shaped[np.ndarray, "h w"], size: Size) -> Shaped[np.ndarray, "H W"]:
    """Resized without mixing values."""
    if array.shape == size:
        return array
    rows, columns = (
        ((np.arange(n) + 0.5) * old / n).astype(int)
        for n, old in zip(size, array.shape, strict=True)
    )
    return array[rows][:, columns]


def smaller(image: UInt8[np.ndarray, "H W 3"], size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Means over areas."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def limited(size: Size, side: int) -> Size:
    """The size with its longer side cut to ``side``, aspect kept."""
    factor = min(1.0, side / max(size))
    height, width = (max(1, round(n * factor)) for n in size)
    return height, width


def encoded(picture: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """The content of a file of ``kind``, as Pillow names and parametrises it."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _with_legend(
    picture: UInt8[np.ndarray, "H W 3"], classes: Classes
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture above names and colours, whose letters grow with it."""
    width = max(picture.shape[1], 240)
    times = max(1, round(math.sqrt(picture[..., 0].size) / 900))
    legend = viz.legend(classes, width // times)
    legend = cv2.resize(legend, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    page = np.full((len(picture) + 8 * times + len(legend), width, 3), 255, np.uint8)
    page[: len(picture), : picture.shape[1]] = picture
    page[-len(legend) :, : legend.shape[1]] = legend
    return page
