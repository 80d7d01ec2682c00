"""Which patches go through which blocks, where a method chooses tokens, and what they show.

The analysis of SViT (Liu et al., WACV 2024, and its released code), for every method with cuts: how
many patches go through each block, how many of those that skip it come back, and where in images
that is. SViT parts foreground from background by detected objects; here labels part the classes,
those named as foreground from the others, and patches on a border between classes from those inside
one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxseg.bypass import Cut
from jaxseg.resize import bilinear_matrix

Grid = tuple[int, int]  # (rows, columns) of patches
PLACES = "on a border between classes", "inside one class"
GROUNDS = "foreground", "background"


def went(
    chosen: Bool[np.ndarray, "cuts r c"], cuts: Sequence[Cut], blocks: int
) -> Bool[np.ndarray, "L r c"]:
    """Whose features each block changes: everybody's up to the first cut.

    A cut inside a block speaks for that block: who is dropped there keeps what it had before.
    """
    through = np.ones((blocks, *chosen.shape[1:]), bool)
    for cut, mask in zip(cuts, chosen, strict=True):
        through[cut.block :] = mask
    return through


def spans(cuts: Sequence[Cut], blocks: int) -> list[tuple[int, int]]:
    """First and last layer (1-based) that the choice at each cut holds for; empty (last < first)
    where the next is at the same place."""
    ends = [cut.block for cut in cuts[1:]] + [blocks]
    return [(cut.block + 1, end) for cut, end in zip(cuts, ends, strict=True)]


def reactivated(
    through: Bool[np.ndarray, "L r c"],
) -> tuple[Int[np.ndarray, " L"], Int[np.ndarray, " L"]]:
    """Patches that skip a block and go through the very next one; and through any later one."""
    following = np.zeros_like(through)
    following[:-1] = through[1:]
    later = np.logical_or.accumulate(following[::-1])[::-1]
    return tuple((~through & back).sum(axis=(1, 2)) for back in (following, later))


class Group(NamedTuple):
    """Kinds of patches: how many there are, and how many of them go through each block."""

    patches: Int[np.ndarray, " n"]
    used: Int[np.ndarray, "n L"]

    @classmethod
    def of(cls, through: Bool[np.ndarray, "L r c"], kinds: Bool[np.ndarray, "n r c"]) -> "Group":
        used = np.einsum("lrc,nrc->nl", through, kinds, dtype=np.int64)
        return cls(kinds.sum(axis=(1, 2)), used)

    @property
    def shares(self) -> Float[np.ndarray, "n L"]:
        """Of the patches of a kind, how many go through each block; NaN of none."""
        return _ratio(self.used, self.patches[:, None])

    def parted(self, chosen: Sequence[int]) -> "Group":
        """Two kinds: all of ``chosen``, and all others."""
        first = np.isin(np.arange(len(self.patches)), chosen)
        return Group(*(np.stack([n[first].sum(0), n[~first].sum(0)]) for n in self))

    def __add__(self, other: "Group") -> "Group":
        return Group(self.patches + other.patches, self.used + other.used)


def places(
    label: UInt8[np.ndarray, "h w"], patch: int, classes: int
) -> tuple[Bool[np.ndarray, "K r c"], Bool[np.ndarray, "2 r c"]]:
    """Which patches show each class, and which lie on a border between classes or inside one.

    A patch belongs to the class that most of its pixels have, of equals to the first; it lies on a
    border if it shows two or more. Patches without labelled pixels are in none of them.
    """
    counts = _counts(label, patch, classes)
    shown = (counts > 0).sum(axis=-1)
    largest = np.where(shown > 0, counts.argmax(axis=-1), -1)
    return np.arange(classes)[:, None, None] == largest, np.stack([shown > 1, shown == 1])


def _counts(label: np.ndarray, patch: int, classes: int) -> Int[np.ndarray, "r c K"]:
    """Pixels of each class in every patch; numpy, because every size would be compiled anew."""
    rows, columns = (-(-side // patch) for side in label.shape)
    row, column = np.arange(label.shape[0])[:, None] // patch, np.arange(label.shape[1]) // patch
    known = label < classes
    at = ((row * columns + column) * classes + label)[known]
    return np.bincount(at, minlength=rows * columns * classes).reshape(rows, columns, classes)


@dataclass(frozen=True, eq=False)
class Usage:
    """Sums over images; they add up, and shares are taken at the end: every patch counts alike.

    following, later: see `reactivated`. maps: per grid, how many images have it and how many blocks
    their patches go through.
    """

    overall: Group
    following: Int[np.ndarray, " L"]
    later: Int[np.ndarray, " L"]
    classes: Group
    places: Group
    maps: Mapping[Grid, tuple[int, Int[np.ndarray, "r c"]]]

    @classmethod
    def of_image(
        cls,
        through: Bool[np.ndarray, "L r c"],
        label: UInt8[np.ndarray, "h w"],
        patch: int,
        classes: int,
    ) -> "Usage":
        """``label``: at the size that the network sees."""
        everybody = np.ones((1, *through.shape[1:]), bool)
        kinds = (everybody, *places(label, patch, classes))
        overall, of_class, of_place = (Group.of(through, kind) for kind in kinds)
        heat = {through.shape[1:]: (1, through.sum(axis=0))}
        return cls(overall, *reactivated(through), of_class, of_place, heat)

    def __add__(self, other: "Usage") -> "Usage":
        maps = dict(self.maps)
        for grid, (images, heat) in other.maps.items():
            before, so_far = maps.get(grid, (0, 0))
            maps[grid] = before + images, so_far + heat
        return Usage(
            self.overall + other.overall,
            self.following + other.following,
            self.later + other.later,
            self.classes + other.classes,
            self.places + other.places,
            maps,
        )

    @property
    def images(self) -> int:
        return sum(images for images, _ in self.maps.values())

    def heat(self) -> Float[np.ndarray, "r c"]:
        """Blocks that a patch goes through, mean over images.

        On the grid that most images have; maps of others are resized bilinearly, as in SViT's code.
        """
        grid = max(self.maps, key=lambda each: self.maps[each][0])
        total = np.zeros(grid)
        for of, (_, heat) in self.maps.items():
            rows, columns = (bilinear_matrix(*axis) for axis in zip(of, grid, strict=True))
            total += rows @ heat @ columns.T
        return total / self.images


def figures(
    usage: Usage, cuts: Sequence[Cut], names: Sequence[str], foreground: Sequence[int] = ()
) -> dict[str, object]:
    """What `usage.json` holds: numbers, lists and names; None where there is nothing to divide.

    Per layer, as shares of all patches: ``usage`` goes through it; ``use_next`` skips it and goes
    through the next (SViT's bar plot), ``use_later`` through any later one, ``dropped`` through
    none. ``reactivation_ratio``: use_later as a share of those that skip it (SViT's text).
    ``grounds``: patches of the classes ``foreground`` (train ids) and of the others; empty without.
    """
    (patches,), (used,) = usage.overall.patches, usage.overall.used
    grounds = _listed(usage.classes.parted(foreground), GROUNDS) if len(foreground) else []
    skipped = patches - used
    layers = {
        "usage": used / patches,
        "use_next": usage.following / patches,
        "use_later": usage.later / patches,
        "dropped": (skipped - usage.later) / patches,
        "reactivation_ratio": _ratio(usage.later, skipped),
    }
    columns = zip(*map(_known, layers.values()), strict=True)
    rows = [{"layer": i, **dict(zip(layers, row, strict=True))} for i, row in enumerate(columns, 1)]
    return {
        "images": usage.images,
        "patches": int(patches),
        "cuts": [{"layer": c.block + 1, "inside": c.inside, "leaves": c.leaves} for c in cuts],
        "usage": float(used.mean() / patches),
        "blocks_per_patch": float(used.sum() / patches),
        "next_of_reactivated": _known(_ratio(usage.following.sum(), usage.later.sum())),
        "layers": rows,
        "classes": _listed(usage.classes, names),
        "foreground": [names[i] for i in foreground],
        "grounds": grounds,
        "places": _listed(usage.places, PLACES),
        "heat_map": usage.heat().round(4).tolist(),
    }


def _listed(group: Group, names: Sequence[str]) -> list[dict[str, object]]:
    per_layer = group.shares
    columns = (names, group.patches.tolist(), _known(per_layer.mean(axis=1)), _known(per_layer))
    keys = "name", "patches", "usage", "usage_per_layer"
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _known(values: np.ndarray) -> list | float | None:
    """As lists, NaN as None: JSON knows no NaN."""
    return np.where(np.isnan(values), None, values).tolist()
