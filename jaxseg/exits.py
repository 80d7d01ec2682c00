"""Figures of a model whose tokens leave early, beside the same weights without exits."""

from collections.abc import Mapping

import numpy as np

from jaxseg import flops
from jaxseg.inference import EvalResult
from jaxseg.models.macs import pruned_macs
from jaxseg.models.segmenter import SegmenterSpec


def mean_gmacs(spec: SegmenterSpec, result: EvalResult) -> float:
    """GMACs per image, mean over images: all inputs, heads that run, tokens really computed.

    Counted input by input, because attention is quadratic in their tokens.
    """
    return _total(spec, result) / 1e9 / len(result.names)


def _total(spec: SegmenterSpec, result: EvalResult) -> float:
    return sum(
        _of_input(spec, size, tokens)
        for sizes, alive in zip(result.inputs, result.alive, strict=True)
        for size, tokens in zip(sizes, alive, strict=True)
    )


def _of_input(spec: SegmenterSpec, size, alive) -> float:
    return pruned_macs(spec, size, [float(n) for n in alive]).gmacs_all_heads * 1e9


def mean_parts(spec: SegmenterSpec, result: EvalResult) -> flops.ModelMacs:
    """Part by part, mean over the inputs of the network."""
    return flops.mean(
        pruned_macs(spec, size, [float(n) for n in tokens])
        for sizes, alive in zip(result.inputs, result.alive, strict=True)
        for size, tokens in zip(sizes, alive, strict=True)
    )


def kept_shares(result: EvalResult) -> np.ndarray:
    """float64 [inputs, exits]: share of an input's tokens that are still inside after each exit."""
    alive = np.concatenate(result.alive).astype(np.float64)
    return alive[:, 1:] / alive[:, :1]


def summary(
    spec: SegmenterSpec, pruned: EvalResult, dense_spec: SegmenterSpec, dense: EvalResult
) -> dict[str, object]:
    """What `results.json` adds where tokens leave early.

    speedup is in images/s of this run; efficiency = speedup / (dense GMACs / pruned GMACs), 1 where
    time falls as MACs do. Dense GMACs are those without auxiliary heads, which it does not run.
    """
    layers = [spec.heads[i].taps[-1] + 1 for i in spec.exits]
    kept = kept_shares(pruned).mean(axis=0)
    ratio = mean_gmacs(dense_spec, dense) / mean_gmacs(spec, pruned)
    speedup = pruned.images_per_second / dense.images_per_second
    return {
        "exit_layers": layers,
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
    kept = ", ".join(
        f"{100 * share:.0f} % of the tokens after layer {layer}"
        for layer, share in zip(found["exit_layers"], found["kept_after_exit"], strict=True)
    )
    return (
        f"dense: mIoU {100 * found['dense_miou']:.2f}, {found['dense_gmacs_per_image']:.2f} GMACs, "
        f"{found['dense_images_per_second']:.2f} images/s; with exits "
        f"{found['gmacs_per_image']:.2f} GMACs ({found['flops_ratio']:.2f} times fewer), "
        f"{found['speedup']:.2f} times as fast, efficiency {found['efficiency']:.2f}; "
        f"inside: {kept}"
    )
