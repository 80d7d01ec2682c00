"""From an image to its label map, and from a data set to its metrics.

Shapes are static where compiling is dear: in slide mode the network is compiled once, for a batch of
windows, whatever the images measure. The small programs around it (adding windows, resizing, argmax)
work on maps rounded up to a multiple of 64 pixels and get exact sizes as data. In whole mode every
new size of a resized image compiles the network again: padding it would change the attention.
"""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxseg import metrics, windows
from jaxseg.data.classes import Classes, Source
from jaxseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, keep_ratio_size, test_image
from jaxseg.errors import UserError
from jaxseg.progress import Progress
from jaxseg.resize import Taps, bilinear_taps, interpolate

_BUCKET = 64
Score = Callable[[dict, Float[Array, "b h w 3"]], Float[Array, "b h w K"]]


@dataclass(frozen=True)
class EvalSpec:
    """How images are evaluated; sizes in pixels, mean and std per RGB channel on the 0..255 scale.

    mode: "slide" (windows of ``crop`` every ``stride``, both (height, width)) or "whole".
    resize: (long, short) that the image is fitted into first, aspect kept; None keeps its size.
    scales: factors on that size. Scores of all scales are averaged at the original size, and with
        ``flip`` those of the mirrored image too.
    batch_size: windows per call of the network.
    """

    mode: str = "slide"
    crop: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 1
    resize: tuple[int, int] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        if self.mode not in ("slide", "whole"):
            raise UserError(f"config.eval.mode={self.mode!r}: choose slide or whole")
        if not all(1 <= s <= c for s, c in zip(self.stride, self.crop, strict=True)):
            raise UserError(
                f"config.eval.stride={self.stride}: each must be 1 or more and at most that of "
                f"config.eval.crop={self.crop}, or pixels are left out"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"config.eval.scales={self.scales}: give one or more positive numbers")
        if self.batch_size < 1:
            raise UserError(f"config.eval.batch_size={self.batch_size}: use 1 or more")


class _View(NamedTuple):
    """One resized, perhaps mirrored copy of an image, on its way to the original size."""

    scale: float
    mirrored: bool


@dataclass(frozen=True)
class Predictor:
    """``score(params, images float32[b,h,w,3]) -> float[b,h,w,K]``, made to answer for whole images.

    ``score`` must be pure and take any h and w; it is compiled here. Its scores are averaged as they
    are: return probabilities where several scales should be averaged as mmseg does.
    """

    score: Score
    spec: EvalSpec

    def predict(self, params: dict, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
        """The label map at the image's own size, on the host."""
        height, width = image.shape[:2]
        return np.asarray(self._run(params, image, _add_and_label))[:height, :width]

    def scores(
        self, params: dict, image: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W K"]:
        """Mean scores over the views at the image's own size, on the host."""
        height, width = image.shape[:2]
        total = np.asarray(self._run(params, image, _add))[:height, :width]
        return total / np.float32(len(self._views()))

    def program(self, size: tuple[int, int]) -> tuple:
        """Images of equal ``program`` run the same compiled code; a new one compiles at first."""
        out = _bucket(size)
        identity = len(self._views()) == 1 and self._resized(size, 1.0) == size
        return out, identity, tuple(self._canvas(self._resized(size, s)) for s in self.spec.scales)

    def _views(self) -> list[_View]:
        sides = (False, True) if self.spec.flip else (False,)
        return [_View(scale, side) for scale in self.spec.scales for side in sides]

    def _run(self, params, image, last):
        """Adds up the views with `_add`, the last one with ``last``."""
        size, total = image.shape[:2], None
        *before, final = self._views()
        for view in before:
            total = _add(total, *self._map(params, image, view, size))
        return last(total, *self._map(params, image, final, size))
