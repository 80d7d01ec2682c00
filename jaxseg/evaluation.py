"""From a data set to its metrics: one or more predictors answer for every image in turn."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from jaxseg import metrics
from jaxseg.data.classes import Classes, Source
from jaxseg.errors import UserError
from jaxseg.inference import Prediction, Predictor
from jaxseg.parallel import gather
from jaxseg.progress import Progress
from jaxseg.windows import Size


class Sample(NamedTuple):
    """One image with its label and its prediction, for pictures."""

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    label: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]
    window: Int[np.ndarray, "r c"]  # of its first input


@dataclass(frozen=True, eq=False)
class EvalResult:
    """What `evaluate` found. All tuples but ``seconds`` and ``samples`` have an entry per image.

    inputs, alive: see `Prediction`. accuracies: share of right pixels.
    seconds: of each call of the predictor, from uint8 pixels in memory to uint8 labels on the host,
        one after the other; several processes make their calls at the same time.
        A call that had to compile is made again; its first time is in ``compile_seconds``.
    """

    matrix: np.ndarray  # int64 [K+1, K], see `jaxseg.metrics.confusion`
    classes: Classes
    names: tuple[str, ...]
    sizes: tuple[Size, ...]
    inputs: tuple[tuple[Size, ...], ...]
    alive: tuple[np.ndarray, ...]
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]
    compile_seconds: float
    samples: tuple[Sample, ...]

    @property
    def scores(self) -> metrics.Scores:
        return metrics.summarise(self.matrix, self.classes.names)

    @property
    def images_per_second(self) -> float:
        return len(self.names) / sum(self.seconds)


def evaluate(
    predictors: Mapping[str, tuple[Predictor, dict | Callable[[Sequence[dict]], dict]]],
    source: Source,
    *,
    pictures: int = 0,
    label: str = "eval",
    each: Callable[[dict, dict[str, Prediction]], None] | None = None,
) -> dict[str, EvalResult]:
    """Predicts every image of ``source`` with every (predictor, prepared parameters), by name.

    Instead of parameters there may be a function that makes them from a batch of samples
    (`jaxseg.oracle`).

    They take turns on each batch of images, in an order that alternates, so that a change of the
    machine's load falls on all. Keeps ``pictures`` samples, evenly spread. ``label`` names the
    progress line. ``each`` is called with every sample and what all predict of it. The next images
    are read while the device is busy. With several processes each predicts a run of the images, and
    all get the result of all.
    Raises UserError: nothing to evaluate, and what the source raises.
    """
    count, classes = len(source), source.classes
    if not count:
        raise UserError("the split to evaluate holds no image: check config.eval.split")
    wanted = set(np.linspace(0, count - 1, min(pictures, count)).astype(int).tolist())
    tallies = {name: _Tally(*predictor) for name, predictor in predictors.items()}
    together = max(predictor.together for predictor, _ in predictors.values())
    part, parts = jax.process_index(), jax.process_count()
    done, end = count * part // parts, count * (part + 1) // parts
    with Progress(end, label, start=done) as progress:
        for turn, batch in enumerate(_batches(_read_ahead(source, done, end), together)):
            order = list(tallies)
            answers = {
                name: tallies[name].add(batch, len(classes), wanted, done)
                for name in (order if turn % 2 else order[::-1])
            }
            if each is not None:
                for i, sample in enumerate(batch):
                    each(sample, {name: found[i] for name, found in answers.items()})
            done += len(batch)
            progress.update(done)
    return {name: tally.result(classes) for name, tally in tallies.items()}


class _Tally:
    """What one predictor has found so far."""

    def __init__(self, predictor: Predictor, params: dict):
        self.predictor, self.params = predictor, params
        self.matrix, self.compile_seconds = 0, 0.0
        self.names, self.sizes, self.inputs, self.alive = [], [], [], []
        self.accuracies, self.seconds, self.samples = [], [], []

    def add(self, batch: list[dict], classes: int, wanted: set[int], done: int) -> list[Prediction]:
        """Predicts a batch and keeps what there is to keep of it."""
        images = [sample["image"] for sample in batch]
        params = self.params(batch) if callable(self.params) else self.params
        found, seconds, compiling = self.predictor.timed(params, images)
        self.seconds.append(seconds)
        self.compile_seconds += compiling
        for i, (sample, prediction) in enumerate(zip(batch, found, strict=True)):
            of_image = metrics.confusion(prediction.labels, sample["label"], classes)
            self.matrix = self.matrix + of_image
            self.names.append(sample["name"])
            self.sizes.append(prediction.labels.shape)
            self.inputs.append(prediction.inputs)
            self.alive.append(prediction.alive)
            self.accuracies.append(metrics.ratio(of_image.trace(), of_image[:-1].sum()))
            if done + i in wanted:
                pixels = (sample["image"], sample["label"], prediction.labels)
                self.samples.append(Sample(sample["name"], *pixels, prediction.window[0]))
        return found

    def result(self, classes: Classes) -> EvalResult:
        """Of all processes, whose runs of images follow one another."""
        lists = self.names, self.sizes, self.inputs, self.alive, self.accuracies, self.seconds
        found = gather((self.matrix, self.compile_seconds, (*lists, self.samples)))
        matrices, compiling, parts = zip(*found, strict=True)
        *joined, samples = (tuple(itertools.chain(*part)) for part in zip(*parts, strict=True))
        return EvalResult(sum(matrices), classes, *joined, max(compiling), samples)


def _batches(samples: Iterator[dict], together: int) -> Iterator[list[dict]]:
    """Up to ``together`` samples in a row whose images have one size."""
    batch = []
    for sample in samples:
        if batch and sample["image"].shape != batch[0]["image"].shape:
            yield batch
            batch = []
        batch.append(sample)
        if len(batch) == together:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_ahead(source: Source, start: int, end: int) -> Iterator[dict]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(source.__getitem__, start) if start < end else None
        for i in range(start, end):
            sample = following.result()
            if i + 1 < end:
                following = pool.submit(source.__getitem__, i + 1)
            yield sample
