"""From an image to its label map.

Shapes are static where compiling is dear: in slide mode the network is compiled once, for a batch
of windows, whatever the images measure. The small programs around it (adding windows, resizing,
argmax) work on maps rounded up to a multiple of 64 pixels and get exact sizes as data. In whole
mode every new size of a resized image compiles the network again: padding would change attention.
There a single view's labels are interpolated only where neighbouring tokens disagree
(`jaxseg.labels`), from the token grid straight to the size of the image.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxseg import labels, windows
from jaxseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, keep_ratio_size, test_image
from jaxseg.errors import UserError
from jaxseg.execute import Answer
from jaxseg.programs import Program, make_room
from jaxseg.windows import Size


@dataclass(frozen=True)
class EvalSpec:
    """How images are evaluated; sizes in pixels, mean and std per RGB channel on the 0..255 scale.

    mode: "slide" (windows of ``crop`` every ``stride``, both (height, width)) or "whole".
    resize: (long, short) that the image is fitted into first, aspect kept; None keeps its size.
    scales: factors on that size. Scores of all scales are averaged at the original size, and with
        ``flip`` those of the mirrored image too.
    batch_size: windows (slide) or images of one size (whole, one view) per call of the network.
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


class Prediction(NamedTuple):
    """Label map of an image at its own size, and what each input of the network cost.

    inputs: the size of every input (window or view), batch filling left out. alive: slots that each
    stage worked on. left: per input, the exit at which each token of its grid left, -1 if at none.
    window: per input, the side of the window that each patch shared its token with, 1 = alone.
    """

    labels: UInt8[np.ndarray, "H W"]
    inputs: tuple[Size, ...]
    alive: Int[np.ndarray, "inputs stages"]
    left: tuple[Int[np.ndarray, "r c"], ...]
    window: tuple[Int[np.ndarray, "r c"], ...]


@dataclass(frozen=True)
class Predictor:
    """A program of `jaxseg.programs` made to answer for images of any size.

    Scores of several views are averaged as they are. ``params`` everywhere is what
    ``program.prepare`` returns, or every call copies them to the device.
    """

    program: Program
    spec: EvalSpec

    def predict(
        self, params: dict, images: Sequence[UInt8[np.ndarray, "H W 3"]]
    ) -> list[Prediction]:
        """Predictions for images of one size, at most ``spec.batch_size`` of them."""
        if self.one_view:
            return self._predict_batch(params, images)
        return [self._predict_views(params, image) for image in images]

    def scores(self, params: dict, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W K"]:
        """Mean scores over scales and mirror images at the image's own size, on the host."""
        height, width = image.shape[:2]
        total = None
        for view, _ in self._views(params, image):
            total = windows.add_view(total, view)
        views = len(self.spec.scales) * (1 + self.spec.flip)
        return np.asarray(total)[:height, :width] / np.float32(views)

    def of_normalised(
        self, params: dict, image: Float[np.ndarray, "h w 3"]
    ) -> Float[np.ndarray, "h w K"]:
        """Scores of one view, an image that is resized and normalised already, at its own size."""
        height, width = image.shape[:2]
        canvas, coverage, _ = self._map(params, image)
        return np.asarray(windows.add_view(None, windows.View(canvas, coverage)))[:height, :width]

    def compiled_for(self, size: Size) -> tuple:
        """Images for which this is equal share all compiled code; a new one has to be compiled."""
        resized = [self._resized(size, scale) for scale in self.spec.scales]
        canvases = (
            resized
            if self.spec.mode == "whole"
            else [windows.canvas_size(r, self.spec.crop) for r in resized]
        )
        around = size if self.one_view else windows.bucket(size)
        return around, self._keeps(size), tuple(canvases)

    def timed(
        self, params: dict, images: Sequence[UInt8[np.ndarray, "H W 3"]]
    ) -> tuple[list[Prediction], float, float]:
        """(predictions, their seconds, seconds of compiling).

        Where something had to be compiled the call is made again, and the first one's time is that
        of compiling. A packed network compiles whenever it meets a new capacity.
        """
        around = self.compiled_for(images[0].shape[:2])
        before = self.program.compiled, around in self._met
        self._met.add(around)
        found, first = self._clocked(params, images)
        if (self.program.compiled, True) == before:
            return found, first, 0.0
        found, second = self._clocked(params, images)
        make_room()
        return found, second, first

    def _clocked(self, params, images) -> tuple[list[Prediction], float]:
        begin = time.perf_counter()
        found = self.predict(params, images)
        return found, time.perf_counter() - begin

    @functools.cached_property
    def _met(self) -> set[tuple]:
        return set()

    @property
    def together(self) -> int:
        """Images of one size that are best predicted in one call."""
        return self.spec.batch_size if self.one_view else 1

    @property
    def one_view(self) -> bool:
        """Whether an image is one input of the network: whole, at one scale, not mirrored."""
        spec = self.spec
        return spec.mode == "whole" and len(spec.scales) == 1 and not spec.flip

    def _predict_batch(self, params: dict, images: Sequence[np.ndarray]) -> list[Prediction]:
        """One view of each image; labels straight from the token grid."""
        size, spec = images[0].shape[:2], self.spec
        fit = self._fit(size, spec.scales[0])
        batch = [test_image(image, *fit, spec.mean, spec.std) for image in images]
        batch += [batch[-1]] * (spec.batch_size - len(batch))
        answer = self.program(params, np.stack(batch))
        given = batch[0].shape[:2]
        rows, columns = (
            labels.axis(n, ((-(-g // self.program.patch) * self.program.patch, g), (s, s)))
            for n, g, s in zip(answer.scores.shape[1:3], given, size, strict=True)
        )
        maps = np.asarray(_label_map(answer.scores, rows, columns))
        alive, left, window = map(np.asarray, answer[1:])
        return [
            Prediction(
                maps[i, : size[0], : size[1]], (given,), alive[i : i + 1], (left[i],), (window[i],)
            )
            for i in range(len(images))
        ]

    def _predict_views(self, params: dict, image: np.ndarray) -> Prediction:
        height, width = image.shape[:2]
        total, last, given = None, None, []
        for view, inputs in self._views(params, image):
            if last is not None:
                total = windows.add_view(total, last)
            last = view
            given += inputs
        found = np.asarray(windows.label_views(total, last))[:height, :width]
        sizes, alive, left, window = zip(*given, strict=True)
        return Prediction(found, sizes, np.stack(alive), left, window)

    def _views(self, params: dict, image: np.ndarray) -> Iterator[tuple[windows.View, list]]:
        """The scores of each resized, perhaps mirrored copy, with the way back to the original.

        Beside it (size, alive, left, window) of each input of the network.
        """
        size, spec = image.shape[:2], self.spec
        for scale in spec.scales:
            small = test_image(image, *self._fit(size, scale), spec.mean, spec.std)
            for mirrored in (False, True)[: 1 + spec.flip]:
                canvas, coverage, given = self._map(params, small[:, ::-1] if mirrored else small)
                taps = None if self._keeps(size) else windows.taps(small.shape[:2], size, mirrored)
                yield windows.View(canvas, coverage, taps), given

    def _map(self, params: dict, image: np.ndarray):
        """Scores of a normalised image at its size or larger, their divisor, the inputs."""
        size, spec, patch = image.shape[:2], self.spec, self.program.patch
        if spec.mode == "whole":
            answer = self.program(params, image[None])
            way = windows.to_pixels(answer.scores.shape[1:3], size, patch)
            return windows.interpolated(answer.scores[0], way), None, _inputs(answer, size, 1)
        starts = windows.window_starts(size, spec.crop, spec.stride)
        padded = np.zeros((-(-len(starts) // spec.batch_size) * spec.batch_size, 2), np.int32)
        padded[: len(starts)] = starts
        canvas, given = None, []
        for first in range(0, len(starts), spec.batch_size):
            batch = slice(first, first + spec.batch_size)
            answer = self.program(params, windows.cut(image, padded[batch], spec.crop))
            if canvas is None:
                extent = windows.canvas_size(size, spec.crop)
                canvas = jnp.zeros((*extent, answer.scores.shape[-1]), jnp.float32)
                way = windows.to_pixels(answer.scores.shape[1:3], spec.crop, patch)
            real = len(starts[batch])
            canvas = windows.add_windows(canvas, answer.scores, way, padded[batch], np.int32(real))
            given += _inputs(answer, spec.crop, real)
        return canvas, windows.coverage(size, spec.crop, spec.stride, canvas.shape[:2]), given

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


_label_map = jax.jit(labels.label_map)


def fitted(image: UInt8[np.ndarray, "H W 3"], how: EvalSpec) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels that a network sees of a whole image, before they are normalised."""
    fit = how.resize or (None, None)
    zero, one = (0.0,) * 3, (1.0,) * 3
    return test_image(image, *fit, zero, one).round().clip(0, 255).astype(np.uint8)


def _inputs(answer: Answer, size: Size, count: int) -> list[tuple]:
    maps = [np.asarray(values) for values in answer[1:]]
    return [(size, *(values[i] for values in maps)) for i in range(count)]
