"""Drawn scenes with exact labels: a data set that needs no download.

Large textured grounds (easy tokens), medium objects, and small or thin ones (hard tokens). Colours
are drawn from wide, overlapping ranges, so texture and outline tell the classes apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from jaxseg.data.classes import Classes, make_classes
from jaxseg.errors import UserError

NAMES = (
    "sky", "grass", "sand", "water",
    "disc", "ring", "box", "triangle", "star", "cross", "pole", "wire",
)  # fmt: skip
_SKY, _GRASS, _SAND, _WATER, _DISC, _RING, _BOX, _TRIANGLE, _STAR, _CROSS, _POLE, _WIRE = range(12)
_SHIFT = 4  # OpenCV draws polygons at 1/16 pixel
_LEAST = 16


@dataclass(frozen=True)
class Shapes:
    """Source of ``count`` drawn scenes of ``size`` (height, width); see `shapes`."""

    count: int
    size: tuple[int, int]
    seed: int

    @property
    def classes(self) -> Classes:
        return make_classes(NAMES)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        index = range(self.count)[index]
        image, label = draw_scene(self.size, np.random.default_rng((self.seed, index)))
        return {"image": image, "label": label, "name": f"shapes{self.seed}_{index:06d}"}


def shapes(count: int, size: tuple[int, int], seed: int) -> Shapes:
    """``count`` scenes of ``size`` (height, width); scene i depends on (size, seed, i) alone.

    Use another seed for another split.

    Raises UserError: no scene, a side below 16 pixels, a negative seed.
    """
    if count < 1:
        raise UserError(f"shapes: count {count} is too small: use 1 or more")
    if min(size) < _LEAST:
        raise UserError(f"shapes: size {size[0]}x{size[1]} is too small: use {_LEAST} or more")
    if seed < 0:
        raise UserError(f"shapes: seed {seed} is negative: use 0 or more")
    return Shapes(count, tuple(size), seed)


def draw_scene(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[H,W,3] RGB, uint8[H,W] class index) of one random scene."""
    label = _grounds(size, rng)
    canvas = np.empty((*size, 3), np.float32)
    for k in np.flatnonzero(np.bincount(label.ravel())):
        np.copyto(canvas, _GROUND_TEXTURES[k](size, rng), where=(label == k)[:, :, None])
    for _ in range(rng.integers(3, 8)):
        kind = int(rng.choice((_DISC, _RING, _BOX, _TRIANGLE, _STAR, _CROSS)))
        # Log-uniform, so small objects are as usual as large ones.
        radius = min(size) * np.exp(rng.uniform(np.log(0.03), np.log(0.22)))
        centre = rng.uniform((0, 0), (size[1], size[0]))
        _paint(canvas, label, kind, _outline(kind, centre, radius, rng), rng)
    for _ in range(rng.integers(0, 4)):
        _paint(canvas, label, _POLE, [_pole(size, rng)], rng)
    for _ in range(rng.integers(0, 3)):
        _paint(canvas, label, _WIRE, [_wire(size, rng)], rng)
    canvas *= rng.uniform(0.7, 1.1)
    canvas += 4.0 * _noise(size, rng)[:, :, None]
    return np.clip(canvas, 0, 255).astype(np.uint8), label


# Grounds


def _grounds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Sky over a wavy horizon; below it two other grounds with a winding border."""
    height, width = size
    label = np.empty(size, np.uint8)
    near, far = rng.permutation((_GRASS, _SAND, _WATER))[:2]
    label[:] = np.where(_smooth(size, 3, rng) > rng.uniform(-0.6, 0.6), near, far)
    horizon = height * (rng.uniform(0.15, 0.7) + 0.06 * _smooth((1, width), 5, rng)[0])
    label[np.arange(height)[:, None] < horizon] = _SKY
    return label


def _noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(size, dtype=np.float32)


def _smooth(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """float32[H,W] noise of about unit size that varies over 1/cells of the frame."""
    grid = rng.uniform(-1.5, 1.5, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)


def _tint(low: tuple[int, int, int], high: tuple[int, int, int], rng: np.random.Generator):
    return rng.uniform(low, high).astype(np.float32)


def _shade(pattern: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return (1.0 + pattern)[:, :, None] * colour


def _sky(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Soft clouds and a vertical gradient."""
    gradient = np.linspace(-0.15, 0.15, size[0], dtype=np.float32)[:, None]
    clouds = 0.1 * np.maximum(_smooth(size, 6, rng), 0)
    return _shade(gradient + clouds, _tint((90, 120, 130), (200, 210, 235), rng))


def _grass(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Upright blades: noise smeared along the columns."""
    blades = cv2.blur(_noise(size, rng), (1, 7))
    return _shade(
        0.55 * blades + 0.1 * _smooth(size, 4, rng), _tint((60, 90, 40), (170, 170, 90), rng)
    )


def _sand(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Fine grain without direction."""
    return _shade(
        0.13 * _noise(size, rng) + 0.08 * _smooth(size, 5, rng),
        _tint((140, 120, 80), (220, 200, 170), rng),
    )


def _water(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Nearly level waves that lengthen towards the viewer."""
    rows = np.linspace(0.3, 1.0, size[0], dtype=np.float32)[:, None]
    phase = rng.uniform(60, 100) * np.sqrt(rows) + 2.5 * _smooth(size, 6, rng)
    return _shade(0.16 * np.sin(phase), _tint((50, 90, 90), (150, 170, 220), rng))


_GROUND_TEXTURES: tuple[Callable, ...] = (_sky, _grass, _sand, _water)


# Objects: polygons float[n,2] of (x, y); a second polygon cuts a hole


def _outline(
    kind: int, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> list[np.ndarray]:
    if kind in (_DISC, _RING):
        circle = _polar(np.ones(48), radius, 0.0)
        holes = [rng.uniform(0.45, 0.7) * circle] if kind == _RING else []
        return [centre + part for part in (circle, *holes)]
    if kind == _STAR:
        part = _polar(np.tile((1.0, 0.42), 5), 1.2 * radius, rng.uniform(0, 2 * np.pi))
    elif kind == _TRIANGLE:
        part = _polar(np.ones(3), 1.2 * radius, rng.uniform(0, 2 * np.pi))
    elif kind == _CROSS:
        a = 0.3
        part = radius * np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
            + [(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    else:
        part = radius * rng.uniform(0.6, 1.0, 2) * [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return [centre + part]


def _polar(radii: np.ndarray, scale: float, turn: float) -> np.ndarray:
    angles = turn + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return scale * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _pole(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    x, foot = rng.uniform(0, width), height * rng.uniform(0.6, 1.0)
    top, half = foot - height * rng.uniform(0.25, 0.6), min(size) * rng.uniform(0.006, 0.015)
    return np.array([(x - half, top), (x + half, top), (x + half, foot), (x - half, foot)])


def _wire(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A band that sags from the left to the right border."""
    height, width = size
    x = np.linspace(0, 1, 33)
    start, end = height * rng.uniform(0.03, 0.6, 2)
    y = start + (end - start) * x + height * rng.uniform(0.02, 0.15) * 4 * x * (1 - x)
    half = max(0.5, min(size) * rng.uniform(0.002, 0.006))
    line = np.stack([x * width, y], axis=1)
    return np.concatenate([line - (0, half), (line + (0, half))[::-1]])


def _pattern(kind: int, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness of an object's surface over its frame, y and x in [-1, 1]."""
    if kind in (_DISC, _RING):  # lit from one side
        angle = rng.uniform(0, 2 * np.pi)
        return 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
    if kind == _BOX:  # windows
        return np.where((np.sin(9 * x) > 0) & (np.sin(9 * y) > 0), -0.4, 0.1)
    if kind == _TRIANGLE:  # slanted stripes
        return 0.3 * np.sign(np.sin(10 * (x + y)))
    if kind == _CROSS:  # chequered
        return 0.3 * np.sign(np.sin(8 * x) * np.sin(8 * y))
    if kind == _POLE:  # round: dark towards both edges
        return 0.2 - 0.5 * x * x + 0 * y
    return 0 * (x + y)


def _paint(
    canvas: np.ndarray,
    label: np.ndarray,
    kind: int,
    outline: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Draws one object into both arrays; its soft edge belongs to it from half cover on."""
    colour, turn = rng.uniform(30, 250, 3).astype(np.float32), rng.uniform(0.8, 1.2)
    limit = label.shape[::-1]
    low = np.clip(np.floor(outline[0].min(axis=0)).astype(int) - 1, 0, limit)
    high = np.clip(np.ceil(outline[0].max(axis=0)).astype(int) + 2, 0, limit)
    if (high <= low).any():
        return
    width, height = high - low
    fixed = [np.round((part - low - 0.5) * 2**_SHIFT).astype(np.int32) for part in outline]
    cover = np.zeros((height, width), np.uint8)
    cv2.fillPoly(cover, fixed, 255, lineType=cv2.LINE_AA, shift=_SHIFT)
    middle, half = outline[0].mean(axis=0), np.ptp(outline[0], axis=0) / 2
    x = (np.arange(low[0], high[0], dtype=np.float32)[None, :] + 0.5 - middle[0]) / half[0] * turn
    y = (np.arange(low[1], high[1], dtype=np.float32)[:, None] + 0.5 - middle[1]) / half[1] * turn
    surface = _shade(_pattern(kind, y, x, rng).astype(np.float32), colour)
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    canvas[window] += (cover[:, :, None] / np.float32(255)) * (surface - canvas[window])
    label[window][cover > 127] = kind
