"""Figures of a model whose tokens leave early, beside the same weights without exits, and pictures.

DIR/exits/*.png: for every sample of an evaluation where its tokens left and what was predicted
then; difficulty.png and kept.png: how images and tokens differ.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import exit_pictures, flops, labels, viz
from jaxseg.data.classes import Classes
from jaxseg.data.transforms import test_image
from jaxseg.evaluation import EvalResult, Sample
from jaxseg.execute import Masked
from jaxseg.inference import EvalSpec, fitted
from jaxseg.merge_pictures import superpatches
from jaxseg.models.heads import Logits
from jaxseg.models.macs import gmacs_of, pruned_macs
from jaxseg.models.network import Arrays, Network
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.progress import Progress
from jaxseg.tokens import Rows


def mean_gmacs(spec: SegmenterSpec, result: EvalResult) -> float:
    """GMACs per image, mean over images: all inputs, heads that run, tokens really computed.

    Counted input by input, because attention is quadratic in their tokens.
    """
    each = zip(result.inputs, result.alive, strict=True)
    return sum(gmacs_of(spec, inputs, alive) for inputs, alive in each) / len(result.names)


def mean_macs(spec: SegmenterSpec, result: EvalResult) -> flops.ModelMacs:
    """Part by part, mean over the inputs of the network (windows or views)."""
    return flops.mean(
        pruned_macs(spec, size, [float(n) for n in tokens])
        for sizes, alive in zip(result.inputs, result.alive, strict=True)
        for size, tokens in zip(sizes, alive, strict=True)
    )


def kept_shares(result: EvalResult) -> np.ndarray:
    """float64 [inputs, exits]: share of an input's first tokens still inside after each exit."""
    alive = np.concatenate(result.alive).astype(np.float64)
    return alive[:, 1:] / alive[:, :1]


def summary(
    spec: SegmenterSpec, pruned: EvalResult, dense_spec: SegmenterSpec, dense: EvalResult
) -> dict[str, object]:
    """What `results.json` adds where tokens leave early.

    speedup is in images/s of this run; efficiency = speedup / (dense GMACs / pruned GMACs), 1 where
    time falls as MACs do. Dense GMACs are those without auxiliary heads, which it does not run.
    """
    kept = kept_shares(pruned).mean(axis=0)
    at_first = np.concatenate(pruned.alive)[:, 0] / np.concatenate(dense.alive)[:, 0]
    ratio = mean_gmacs(dense_spec, dense) / mean_gmacs(spec, pruned)
    speedup = pruned.images_per_second / dense.images_per_second
    return {
        "tokens_after_merging": float(at_first.mean()),
        "exit_layers": ends_of(spec),
        "kept_after_exit": [float(share) for share in kept],
        "dense_miou": dense.scores.miou,
        "dense_gmacs_per_image": mean_gmacs(dense_spec, dense),
        "dense_images_per_second": dense.images_per_second,
        "flops_ratio": ratio,
        "speedup": speedup,
        "efficiency": speedup / ratio,
    }


def line(found: Mapping[str, object]) -> str:
    """`summary` in one line for people."""
    kept = [
        f"{100 * share:.0f} % of them after layer {layer}"
        for layer, share in zip(found["exit_layers"], found["kept_after_exit"], strict=True)
    ]
    inside = ", ".join([f"{100 * found['tokens_after_merging']:.0f} % of the tokens", *kept])
    return (
        f"dense: mIoU {100 * found['dense_miou']:.2f}, {found['dense_gmacs_per_image']:.2f} GMACs, "
        f"{found['dense_images_per_second']:.2f} images/s; pruned "
        f"{found['gmacs_per_image']:.2f} GMACs ({found['flops_ratio']:.2f} times fewer), "
        f"{found['speedup']:.2f} times as fast, efficiency {found['efficiency']:.2f}; "
        f"inside: {inside}"
    )


def layers_of(spec: SegmenterSpec) -> list[int]:
    """The layers (1-based) after which tokens leave."""
    return [spec.heads[i].taps[-1] + 1 for i in spec.exits]


def ends_of(spec: SegmenterSpec) -> list[int]:
    """The last layer (1-based) of each stage but the last: tokens leave, or are chosen, behind it
    or in the middle of it."""
    if isinstance(spec, SparseSpec):
        return [cut.block + cut.inside for cut in spec.cuts]
    return layers_of(spec)


class Stages(NamedTuple):
    """An image on its way: what was predicted after each exit and at the end, and who left.

    labels: uint8[H, W] per stage. left: int[r, c], number of the exit or -1. windows: int[r, c],
    side of the window that each patch is merged in. confidences: per exit, those of the tokens that
    it graded.
    """

    labels: list[np.ndarray]
    left: np.ndarray
    windows: np.ndarray
    confidences: list[np.ndarray]


@dataclass(frozen=True)
class StageView:
    """Runs whole images, one at a time, and keeps what every stage says, fitted as ``how`` says.

    Also where the evaluation itself goes by windows: then its last labels are not those of these.
    """

    network: Network
    how: EvalSpec

    def __call__(self, arrays: Arrays, image: np.ndarray) -> Stages:
        """Of uint8[H, W, 3], fitted into ``how.resize``; label maps at the image's own size."""
        size, how = image.shape[:2], self.how
        fit = how.resize or (None, None)
        given = test_image(image, *fit, how.mean, how.std)
        grids, confidence, answer = self._run(arrays, given[None])
        left = np.asarray(answer.left[0])
        inside = [(left < 0) | (left >= number) for number in range(len(confidence))]
        return Stages(
            [self._labels(grid, given.shape[:2], size) for grid in grids],
            left,
            np.asarray(answer.window[0]),
            [np.asarray(c[0])[i] for c, i in zip(confidence, inside, strict=True)],
        )

    @functools.cached_property
    def _run(self):
        spec = self.network.spec

        def run(arrays, images):
            model = self.network.bind(*self.network.split(arrays))
            logits = [model(images)[i] for i in spec.exits]
            size = tuple(-(-s // spec.vit.patch) * spec.vit.patch for s in images.shape[1:3])
            heads = [model.heads[i] for i in spec.exits]
            grids = [h.grid_scores(each, size) for h, each in zip(heads, logits, strict=True)]
            certain = [
                h.token_scores(_rows(each), Rows(None, 0)).max(axis=-1).reshape(grid.shape[:3])
                for h, each, grid in zip(heads, logits, grids, strict=True)
            ]
            answer = self.network.program(Masked())(arrays, images)
            if spec.final_at_exit:  # what was said when a token left, not what a later head says
                for number in range(1, len(grids)):
                    gone = (answer.left >= 0) & (answer.left < number)
                    grids[number] = jnp.where(gone[..., None], grids[number - 1], grids[number])
            return [*grids, answer.scores], certain, answer

        return jax.jit(run)

    def _labels(self, grid, given: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        patch = self.network.spec.vit.patch
        rows, columns = (
            labels.axis(n, ((-(-g // patch) * patch, g), (s, s)))
            for n, g, s in zip(grid.shape[1:3], given, size, strict=True)
        )
        return np.asarray(_label_map(grid, rows, columns)[0])[: size[0], : size[1]]


_label_map = jax.jit(labels.label_map)


def _rows(logits: Logits) -> Logits:
    """From the grid to a row per patch."""
    batch, *_, classes = logits.mask.shape
    return logits._replace(mask=logits.mask.reshape(batch, -1, classes))


def write_pictures(
    folder: pathlib.Path,
    view: StageView,
    arrays: Arrays,
    samples: Sequence[Sample],
    result: EvalResult,
    classes: Classes,
) -> None:
    """A sheet per sample and two histograms: of confidence over the samples' tokens, each image
    whole, and of the share of tokens that stays over all inputs of ``result``."""
    spec = view.network.spec
    layers, patch = layers_of(spec), spec.vit.patch
    folder.mkdir(exist_ok=True)
    graded: list[list[np.ndarray]] = [[] for _ in layers]
    with Progress(len(samples), "pictures") as progress:
        for done, sample in enumerate(samples, start=1):
            stages = view(arrays, sample.image)
            seen = fitted(sample.image, view.how)
            label, *found = (_nearest(m, seen.shape[:2]) for m in (sample.label, *stages.labels))
            merged = stages.windows.max() > 1
            tokens = superpatches(seen, stages.windows, patch) if merged else None
            sheet = exit_pictures.panels(
                seen, label, found, stages.left, layers, classes, patch, tokens
            )
            viz.save_png(folder / f"{sample.name.replace('/', '_')}.png", sheet)
            for all_of_exit, confidences in zip(graded, stages.confidences, strict=True):
                all_of_exit.append(confidences.reshape(-1))
            progress.update(done)
    thresholds = [spec.heads[i].decide.threshold for i in spec.exits]
    joined = [np.concatenate(each) if each else np.zeros(0) for each in graded]
    viz.save_png(
        folder / "difficulty.png", exit_pictures.difficulty_histogram(joined, layers, thresholds)
    )
    viz.save_png(
        folder / "kept.png", exit_pictures.shares_histogram(kept_shares(result), ends_of(spec))
    )


def _nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        ((np.arange(n) + 0.5) * old / n).astype(int)
        for n, old in zip(size, label.shape, strict=True)
    )
    return label[rows][:, columns]
