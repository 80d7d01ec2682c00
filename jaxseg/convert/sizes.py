"""What the names and shapes of another program's arrays tell about the model they belong to.

Prefixes are texts here, not patterns. Every function raises UserError if an array that is needed to
tell is missing or has another number of axes.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxseg.convert.backbone import AUGREG, Layout, tokens_before
from jaxseg.errors import UserError

State = Mapping[str, np.ndarray]


class VitSizes(NamedTuple):
    """``positions``: those of patches. ``heads``: None where no shape tells (all but AugReg)."""

    width: int
    depth: int
    patch: int
    positions: int
    final_norm: bool
    heads: int | None


class HeadSizes(NamedTuple):
    """``layers``: of a decoder, or convolutions. ``levels``: taps that a cascade reads."""

    classes: int
    width: int
    layers: int
    levels: int = 1


def vit_sizes(source: State, layout: Layout, origin: str, prefix: str = "") -> VitSizes:
    """Sizes of a ViT."""
    patches = shape_of(source, prefix + layout.patches, 4, origin)
    positions = shape_of(source, prefix + layout.positions, 3, origin)[1]
    width, patch, heads = patches[0], patches[2], None  # PyTorch: [D, 3, patch, patch]
    if layout is AUGREG:  # [patch, patch, 3, D]; a query is [D, heads, D / heads]
        width, patch = patches[3], patches[0]
        heads = shape_of(source, prefix + layout.sign, 3, origin)[1]
    return VitSizes(
        width=width,
        depth=count_of(source, re.escape(prefix) + layout.block),
        patch=patch,
        positions=positions - tokens_before(source, prefix),
        final_norm=prefix + layout.last_norm in source,
        heads=heads,
    )


def atm_sizes(source: State, prefix: str, origin: str) -> HeadSizes:
    """Sizes of DToP's head."""
    classes, width = shape_of(source, prefix + "q.weight", 2, origin)
    layers = count_of(source, re.escape(prefix) + r"decoder\.layers\.(\d+)\.")
    return HeadSizes(classes, width, layers)


def cascade_sizes(source: State, prefix: str, origin: str) -> HeadSizes:
    """Sizes of SegViT's head; all its decoders have as many layers as the first."""
    classes, width = shape_of(source, prefix + "q.weight", 2, origin)
    start = re.escape(prefix)
    layers = count_of(source, start + r"decoder_1\.layers\.(\d+)\.")
    return HeadSizes(classes, width, layers, count_of(source, start + r"input_proj_(\d+)\."))


def conv_sizes(source: State, prefix: str, origin: str) -> HeadSizes:
    """Sizes of mmsegmentation's SETR head."""
    classes, width, *_ = shape_of(source, prefix + "conv_seg.weight", 4, origin)
    return HeadSizes(classes, width, count_of(source, re.escape(prefix) + r"up_convs\.(\d+)\."))


def mask_sizes(source: State, prefix: str, origin: str) -> HeadSizes:
    """Sizes of Segmenter's mask transformer."""
    return _mask_sizes(source, prefix, r"blocks\.(\d+)\.", origin)


def mmseg_mask_sizes(source: State, prefix: str, origin: str) -> HeadSizes:
    """Sizes of the same under mmsegmentation's names."""
    return _mask_sizes(source, prefix, r"layers\.(\d+)\.", origin)


def _mask_sizes(source: State, prefix: str, layer: str, origin: str) -> HeadSizes:
    _, classes, width = shape_of(source, prefix + "cls_emb", 3, origin)
    return HeadSizes(classes, width, count_of(source, re.escape(prefix) + layer))


def shape_of(source: State, name: str, axes: int, origin: str) -> tuple[int, ...]:
    """The shape of an array that must be there."""
    if name not in source:
        raise UserError(f"{origin}: has no {name}, which would tell the sizes of the model")
    shape = np.shape(source[name])
    if len(shape) != axes:
        raise UserError(f"{origin}: {name} has shape {shape}, where {axes} axes are expected")
    return shape


def count_of(source: State, pattern: str) -> int:
    """How many different numbers group 1 of ``pattern`` finds where names begin."""
    found = (re.match(pattern, name) for name in source)
    return len({match[1] for match in found if match})
