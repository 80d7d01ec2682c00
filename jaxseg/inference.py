"""From an image to its label map, and from a data set to its metrics.

Shapes are static where compiling is dear: in slide mode the network is compiled once, for a batch
of windows, whatever the images measure. The small programs around it (adding windows, resizing,
argmax) work on maps rounded up to a multiple of 64 pixels and get exact sizes as data. In whole
mode every new size of a resized image compiles the network again: padding would change attention.
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
from jaxseg.windows import Size

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


@dataclass(frozen=True)
class Predictor:
    """``score(params, images float32[b,h,w,3]) -> float[b,h,w,K]``, made to answer for an image.

    ``score`` must be pure and take any h and w; it is compiled here. Its scores are averaged as
    they are: return probabilities where several scales are to be averaged as mmseg does. Put
    ``params`` on the device first (`jax.device_put`), or every call copies them.
    """

    score: Score
    spec: EvalSpec

    def predict(self, params: dict, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
        """The label map at the image's own size, on the host."""
        height, width = image.shape[:2]
        views = self._views(params, image)
        total, last = None, next(views)
        for view in views:
            total, last = windows.add_view(total, last), view
        return np.asarray(windows.label_views(total, last))[:height, :width]

    def scores(self, params: dict, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W K"]:
        """Mean scores over scales and mirror images at the image's own size, on the host."""
        height, width = image.shape[:2]
        total = None
        for view in self._views(params, image):
            total = windows.add_view(total, view)
        views = len(self.spec.scales) * (1 + self.spec.flip)
        return np.asarray(total)[:height, :width] / np.float32(views)

    def program(self, size: Size) -> tuple:
        """Images of equal ``program`` share all compiled code; a new one has to be compiled."""
        resized = [self._resized(size, scale) for scale in self.spec.scales]
        canvases = (
            resized
            if self.spec.mode == "whole"
            else [windows.canvas_size(r, self.spec.crop) for r in resized]
        )
        return windows.bucket(size), self._keeps(size), tuple(canvases)

    def inputs(self, size: Size) -> list[Size]:
        """What the network is given for one image of ``size``: a size per window, or per view."""
        spec, given = self.spec, []
        for scale in spec.scales:
            resized = self._resized(size, scale)
            if spec.mode == "slide":
                given += [spec.crop] * len(windows.window_starts(resized, spec.crop, spec.stride))
            else:
                given.append(resized)
        return given * (1 + spec.flip)

    @functools.cached_property
    def _score(self) -> Score:
        return jax.jit(self.score)

    def _views(self, params: dict, image: np.ndarray) -> Iterator[windows.View]:
        """The scores of each resized, perhaps mirrored copy, and the way back to the original."""
        size, spec = image.shape[:2], self.spec
        for scale in spec.scales:
            small = test_image(image, *self._fit(size, scale), spec.mean, spec.std)
            for mirrored in (False, True)[: 1 + spec.flip]:
                canvas, coverage = self._map(params, small[:, ::-1] if mirrored else small)
                taps = None if self._keeps(size) else windows.taps(small.shape[:2], size, mirrored)
                yield windows.View(canvas, coverage, taps)

    def _map(self, params: dict, image: np.ndarray):
        """Scores of a normalised image at its size or larger, and what to divide them by."""
        size, spec = image.shape[:2], self.spec
        if spec.mode == "whole":
            return self._score(params, image[None])[0], None
        starts = windows.window_starts(size, spec.crop, spec.stride)
        padded = np.zeros((-(-len(starts) // spec.batch_size) * spec.batch_size, 2), np.int32)
        padded[: len(starts)] = starts
        canvas = None
        for first in range(0, len(starts), spec.batch_size):
            batch = slice(first, first + spec.batch_size)
            scores = self._score(params, windows.cut(image, padded[batch], spec.crop))
            if canvas is None:
                extent = windows.canvas_size(size, spec.crop)
                canvas = jnp.zeros((*extent, scores.shape[-1]), jnp.float32)
            real = np.int32(len(starts[batch]))
            canvas = windows.add_windows(canvas, scores, padded[batch], real)
        return canvas, windows.coverage(size, spec.crop, spec.stride, canvas.shape[:2])

    def _fit(self, size: Size, scale: float) -> tuple[int | None, int | None]:
        """(long, short) for `test_image`; None and None where nothing is resized."""
        if self.spec.resize is None and scale == 1.0:
            return None, None
        long, short = self.spec.resize or (max(size), min(size))
        return int(long * scale), int(short * scale)

    def _resized(self, size: Size, scale: float) -> Size:
        long, short = self._fit(size, scale)
        return size if long is None else keep_ratio_size(size, long, short)

    def _keeps(self, size: Size) -> bool:
        """Whether the scores are at the original size already."""
        spec = self.spec
        return (
            len(spec.scales) == 1 and not spec.flip and self._resized(size, spec.scales[0]) == size
        )


class Sample(NamedTuple):
    """One image with its label and its prediction, for pictures."""

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    label: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class EvalResult:
    """What `evaluate` found. ``names``, ``sizes`` and ``accuracies`` (right pixels) are per image.

    seconds: per image, from uint8 pixels in memory to uint8 labels on the host; without the first
        image of each `Predictor.program`, whose time, mostly compiling, is in ``compile_seconds``.
    """

    matrix: np.ndarray  # int64 [K+1, K], see `jaxseg.metrics.confusion`
    classes: Classes
    names: tuple[str, ...]
    sizes: tuple[Size, ...]
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]
    compile_seconds: float
    samples: tuple[Sample, ...]

    @property
    def scores(self) -> metrics.Scores:
        return metrics.summarise(self.matrix, self.classes.names)

    @property
    def images_per_second(self) -> float:
        """NaN where every image had to be compiled for."""
        return len(self.seconds) / sum(self.seconds) if self.seconds else float("nan")


def evaluate(
    predictor: Predictor, params: dict, source: Source, *, pictures: int = 0, label: str = "eval"
) -> EvalResult:
    """Predicts every image of ``source`` and keeps ``pictures`` samples, evenly spread.

    ``label`` names the progress line. The next image is read while the device is busy.
    Raises UserError: nothing to evaluate, and what the source raises.
    """
    count, classes = len(source), source.classes
    if not count:
        raise UserError("the split to evaluate holds no image: check config.eval.split")
    params = jax.device_put(params)
    wanted = set(np.linspace(0, count - 1, min(pictures, count)).astype(int).tolist())
    matrix = np.zeros((len(classes) + 1, len(classes)), np.int64)
    names, sizes, accuracies, seconds, samples = [], [], [], [], []
    compile_seconds, programs = 0.0, set()
    with Progress(count, label) as progress:
        for i, sample in enumerate(_read_ahead(source)):
            begin = time.perf_counter()
            prediction = predictor.predict(params, sample["image"])
            elapsed = time.perf_counter() - begin
            program = predictor.program(prediction.shape)
            if program in programs:
                seconds.append(elapsed)
            else:
                programs.add(program)
                compile_seconds += elapsed
            of_image = metrics.confusion(prediction, sample["label"], len(classes))
            matrix += of_image
            names.append(sample["name"])
            sizes.append(prediction.shape)
            accuracies.append(metrics.ratio(of_image.trace(), of_image[:-1].sum()))
            if i in wanted:
                samples.append(Sample(sample["name"], sample["image"], sample["label"], prediction))
            progress.update(i + 1)
    return EvalResult(
        matrix,
        classes,
        tuple(names),
        tuple(sizes),
        tuple(accuracies),
        tuple(seconds),
        compile_seconds,
        tuple(samples),
    )


def _read_ahead(source: Source) -> Iterator[dict]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(source.__getitem__, 0)
        for i in range(len(source)):
            sample = following.result()
            if i + 1 < len(source):
                following = pool.submit(source.__getitem__, i + 1)
            yield sample
