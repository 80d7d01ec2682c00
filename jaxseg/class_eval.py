"""A classifier on a whole set: top-1, top-5, tokens and speed."""

import functools
import operator
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxseg.data.class_transforms import centre_crop
from jaxseg.data.classes import Source
from jaxseg.data.transforms import normalise
from jaxseg.errors import UserError
from jaxseg.parallel import gather
from jaxseg.programs import Program
from jaxseg.progress import Progress

TOP = 5


@dataclass(frozen=True)
class ClassEvalSpec:
    """How images are seen: the middle, ``crop`` (height, width), which is ``share`` of the short
    side, ``batch_size`` at a time. mean, std: per RGB channel on the 0..255 scale."""

    crop: tuple[int, int]
    share: float
    batch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self):
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"config.eval.crop_share={self.share}: give a share above 0, up to 1")
        if self.batch_size < 1:
            raise UserError(f"config.eval.batch_size={self.batch_size}: use 1 or more")


class Batch(NamedTuple):
    """``images`` always has the full size: at the end of a set the last one is repeated."""

    images: Float[np.ndarray, "B h w 3"]
    labels: Int[np.ndarray, " real"]


@dataclass
class ClassResult:
    """Sums over a set. hits: images whose class is among the first 1 and ``TOP``.

    alive: slots that each stage worked on, a row per image. computed: images, those that fill up
    the last batch too. seconds: of all batches, from images on the device to the best classes on
    the host; a batch that had to compile is run again, its first time is in ``compile_seconds``.
    """

    images: int = 0
    hits: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    alive: list[np.ndarray] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def __add__(self, other: "ClassResult") -> "ClassResult":
        """Of two parts of a set."""
        names = [each.name for each in fields(self)]
        return ClassResult(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def top1(self) -> float:
        return float(self.hits[0] / self.images)

    @property
    def top5(self) -> float:
        return float(self.hits[1] / self.images)

    @property
    def images_per_second(self) -> float:
        return self.computed / self.seconds


def evaluate_classifiers(
    models: Mapping[str, tuple[Program, dict]],
    source: Source,
    how: ClassEvalSpec,
    label: str = "eval",
) -> dict[str, ClassResult]:
    """Every image through every (program, prepared arrays), by name.

    They take turns on each batch, in an order that alternates, so that a change of the machine's
    load falls on all. No image is read meanwhile: on a CPU that would slow them down. Several
    processes share out the images, and all get the result of all.
    Raises UserError: nothing to evaluate, and what the source raises.
    """
    if not len(source):
        raise UserError("the split to evaluate holds no image: check config.eval.split")
    found = {name: ClassResult() for name in models}
    part, parts = jax.process_index(), jax.process_count()
    share = range(len(source) * part // parts, len(source) * (part + 1) // parts)
    with Progress(len(share), label) as progress:
        for turn, batch in enumerate(_batches(source, share, how)):
            images = jax.device_put(batch.images).block_until_ready()
            for name in list(models)[:: 1 if turn % 2 else -1]:
                _add(found[name], *models[name], images, batch.labels)
            progress.update(found[name].images)
    return {name: functools.reduce(operator.add, gather(each)) for name, each in found.items()}


def hits(best: Int[np.ndarray, "B k"], labels: Int[np.ndarray, " B"]) -> Int[np.ndarray, "2"]:
    """How many labels are the first, and how many are any, of the ``best`` classes."""
    right = best == labels[:, None]
    return np.array([right[:, 0].sum(), right.any(axis=1).sum()])


@jax.jit
def best_classes(scores: Float[jax.Array, "B 1 1 K"]) -> Int[jax.Array, "B k"]:
    """The ``TOP`` classes with the largest scores, best first; all, where there are fewer."""
    return jax.lax.top_k(scores[:, 0, 0], min(TOP, scores.shape[-1]))[1].astype(jnp.int32)


def _add(result: ClassResult, program: Program, arrays: dict, images, labels) -> None:
    compiled = program.compiled, best_classes._cache_size()
    best, alive, seconds = _run(program, arrays, images)
    if (program.compiled, best_classes._cache_size()) != compiled:
        result.compile_seconds += seconds
        best, alive, seconds = _run(program, arrays, images)
    real = len(labels)
    result.images += real
    result.hits += hits(best[:real], labels)
    result.alive.extend(alive[:real])
    result.computed += len(images)
    result.seconds += seconds


def _run(program: Program, arrays: dict, images) -> tuple[np.ndarray, np.ndarray, float]:
    begin = time.perf_counter()
    answer = program(arrays, images)
    best = np.asarray(best_classes(answer.scores))
    seconds = time.perf_counter() - begin
    return best, np.asarray(answer.alive), seconds


def _batches(source: Source, share: range, how: ClassEvalSpec) -> Iterator[Batch]:
    def prepared(index: int) -> tuple[np.ndarray, int]:
        sample = source[index]
        image = centre_crop(sample["image"], how.crop, how.share)
        return normalise(image, how.mean, how.std), int(sample["label"])

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(share), how.batch_size):
            part = share[first : first + how.batch_size]
            images, labels = zip(*pool.map(prepared, part), strict=True)
            images += images[-1:] * (how.batch_size - len(images))
            yield Batch(np.stack(images), np.array(labels, np.int32))
