"""Images that have one class each: a folder per class, and drawn scenes for a first try.

The layout under ``root`` is that of ImageNet::

    {split}/{class}/x.JPEG    also .jpg .png .webp

A sample's label is its class as int32[].
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.classes import Classes, is_name, make_classes
from jaxseg.data.images import read_image
from jaxseg.data.shapes import NAMES, Shapes
from jaxseg.errors import UserError

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_LAYOUT = "expected {split}/{class}/x.JPEG"


@dataclass(frozen=True, eq=False)
class ClassFolder:
    """Source over files below ``root``; see `class_folder`. A sample's name is its file."""

    classes: Classes
    root: Path
    files: tuple[str, ...]  # {split}/{class}/{file}
    labels: np.ndarray  # int32 [files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        file = self.files[index]
        return {"image": read_image(self.root / file), "label": self.labels[index], "name": file}


def class_folder(root: str | Path, split: str) -> ClassFolder:
    """Opens one split; lists files only, no image is read.

    Classes are the names of the class folders of all splits, sorted: a split that lacks one counts
    like the others. Hidden folders, and files beside class folders, are left out.

    Raises UserError: no such split, no class folder or no image in it, a name that cannot be shown.
    """
    root = Path(root)
    splits = _folders(root) if root.is_dir() else []
    if split not in splits:
        raise UserError(
            f"data split '{split}': no folder {root / split}; there: {', '.join(splits) or '-'}; "
            f"{_LAYOUT} under {root} (config.data.root)"
        )
    inside = {each: _folders(root / each) for each in splits}
    names = sorted({name for folders in inside.values() for name in folders})
    strange = [name for name in names if not is_name(name)]
    if strange:
        raise UserError(
            f"{root}: the folder {strange[0]!r} cannot be the name of a class: rename it"
        )
    files, labels = [], []
    for name in inside[split]:
        with os.scandir(root / split / name) as entries:
            found = sorted(entry.name for entry in entries)
        found = [f for f in found if f.lower().endswith(_SUFFIXES) and not f.startswith(".")]
        files += [f"{split}/{name}/{file}" for file in found]
        labels += [names.index(name)] * len(found)
    if not files:
        raise UserError(f"{root / split}: holds no image in a folder per class: {_LAYOUT}")
    return ClassFolder(make_classes(names), root, tuple(files), np.array(labels, np.int32))


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


@dataclass(frozen=True)
class Grounds:
    """Source of drawn scenes: the class is the ground that covers most of one."""

    scenes: Shapes

    @property
    def classes(self) -> Classes:
        return make_classes(NAMES[:4])  # sky, grass, sand, water; then come objects

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        scene = self.scenes[index]
        pixels = np.bincount(scene["label"].reshape(-1), minlength=4)[:4]
        return scene | {"label": np.int32(pixels.argmax())}
