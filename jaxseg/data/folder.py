"""A data set in plain folders.

The layout under ``root`` is::

    images/{split}/x.jpg    also .jpeg .png .webp
    labels/{split}/x.png    one channel, or a palette: the stored number is the class index
    classes.txt             index<TAB>name[<TAB>r,g,b], tabs or spaces
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from jaxseg.data.classes import IGNORE, Classes, generated_palette, is_name, nearest
from jaxseg.data.images import read_pair
from jaxseg.errors import UserError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LABEL_SUFFIXES = (".png", ".jpg", ".jpeg")  # JPEG is paired, then refused with its reason
_LAYOUT = "expected images/{split}/x.jpg, labels/{split}/x.png and classes.txt"
_LONGEST_LINE = 400  # characters
_CLASS_LINE = re.compile(r"(\d+)\s+(\S.*?)(?:\s+(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?")


@dataclass(frozen=True, eq=False)
class Folder:
    """Source over (name, image file, label file) triples; see `folder`."""

    classes: Classes
    files: tuple[tuple[str, str, str], ...]
    train_ids: np.ndarray  # int16[256]: stored number -> train id, 255 = ignore, -1 = not a class

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        name, image_path, label_path = self.files[index]
        image, stored = read_pair(image_path, label_path)
        label = self.train_ids[stored]
        if label.min() < 0:
            row, column = np.argwhere(label < 0)[0]
            raise UserError(
                f"{label_path}: label value {stored[row, column]} (first at row {row}, column "
                f"{column}; {np.count_nonzero(label < 0)} pixels hold such values) is not in "
                "classes.txt: add the class there, or store 255 for pixels to ignore"
            )
        return {"image": image, "label": label.astype(np.uint8), "name": name}


def folder(root: str | Path, split: str, ignore: Iterable[str] = ()) -> Folder:
    """Opens one split of a folder data set; lists files only, no image is read.

    ``split`` joins parts by ``+``; a part is a split folder, optionally with a pattern for file
    stems: ``train+val``, ``test/Seq05VD*``, ``train/!0006R0*`` (all but those). ``ignore`` names
    classes whose pixels become 255. Stored 255 is always ignored. The other classes, in index
    order, are the train ids 0..K-1. A sample's name is ``split/stem``.

    Raises UserError: missing or unpaired files, malformed classes.txt, unknown class name in
    ``ignore``, nothing selected.
    """
    root = Path(root)
    for needed in (root, root / "images", root / "labels"):
        if not needed.is_dir():
            raise UserError(f"{needed}: no such folder: {_LAYOUT} under {root} (config.data.root)")
    classes, train_ids = _read_classes(root / "classes.txt", tuple(ignore))
    files = {}
    for part in split.split("+"):
        folder_name, _, pattern = part.strip().partition("/")
        selected = _select(_pairs(root, folder_name), pattern)
        if not selected:
            raise UserError(
                f"data split '{part}' selects no file of {root / 'images' / folder_name}: "
                "check the pattern (it is matched against file names without suffix)"
            )
        files |= {f"{folder_name}/{stem}": paths for stem, paths in selected.items()}
    return Folder(classes, tuple((name, *paths) for name, paths in files.items()), train_ids)


def _select(pairs: dict[str, tuple[str, str]], pattern: str) -> dict[str, tuple[str, str]]:
    if not pattern:
        return pairs
    wanted = not pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    return {stem: paths for stem, paths in pairs.items() if fnmatchcase(stem, pattern) == wanted}


def _pairs(root: Path, split: str) -> dict[str, tuple[str, str]]:
    """{stem: (image file, label file)} of one split folder, sorted by stem."""
    images = _by_stem(root / "images", split, _IMAGE_SUFFIXES)
    labels = _by_stem(root / "labels", split, _LABEL_SUFFIXES)
    for have, lack, what, mend in (
        (images, labels, "images/{} without a label", "labels/{}/<same name>.png is needed"),
        (labels, images, "labels/{} without an image", "images/{}/<same name>.jpg is needed"),
    ):
        alone = [path.name for stem, path in have.items() if stem not in lack]
        if alone:
            listed = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
            raise UserError(
                f"{root}: {len(alone)} of {len(have)} files in {what.format(split)} "
                f"({listed}): {mend.format(split)}, or remove them"
            )
    return {stem: (str(path), str(labels[stem])) for stem, path in images.items()}


def _by_stem(parent: Path, split: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if not split or not (parent / split).is_dir():
        there = sorted(p.name for p in parent.iterdir() if p.is_dir())
        raise UserError(
            f"data split '{split}': no folder {parent / split}; there: {', '.join(there) or '-'}"
        )
    for path in sorted((parent / split).iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise UserError(
                f"{path}: {found[path.stem].name} has the same name but for the suffix: remove one"
            )
        found[path.stem] = path
    if not found:
        raise UserError(f"{parent / split}: holds no {' '.join(suffixes)} file: {_LAYOUT}")
    return found


def _read_classes(path: Path, ignore: tuple[str, ...]) -> tuple[Classes, np.ndarray]:
    names, colours = _parse_classes(path)
    for name in ignore:
        if name not in names.values():
            near = nearest(name, names.values())
            raise UserError(
                f"config.data.ignore names '{name}', which is not in {path}; nearest is '{near}'"
            )
    kept = [i for i in sorted(names) if i != IGNORE and names[i] not in ignore]
    if not kept:
        raise UserError(f"{path}: every class is ignored: shorten config.data.ignore")
    train_ids = np.full(256, -1, np.int16)
    train_ids[[*names, IGNORE]] = IGNORE
    train_ids[kept] = np.arange(len(kept))
    spare = generated_palette(len(kept))
    palette = tuple(colours.get(i, spare[k]) for k, i in enumerate(kept))
    return Classes(tuple(names[i] for i in kept), palette), train_ids


def _parse_classes(path: Path) -> tuple[dict[int, str], dict[int, tuple[int, int, int]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: write a line 'index<TAB>name' per class") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: save it as UTF-8") from None
    names: dict[int, str] = {}
    colours: dict[int, tuple[int, int, int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        # The pattern would search a very long line for very long.
        match = _CLASS_LINE.fullmatch(line.strip()) if len(line) <= _LONGEST_LINE else None
        problem = None
        if not match or not is_name(match[2]):
            problem = "is not 'index<TAB>name' or 'index<TAB>name<TAB>r,g,b'"
        elif max(int(n) for n in match.group(1, 3, 4, 5) if n) > 255:
            problem = "has a number above 255"
        elif int(match[1]) in names or match[2] in names.values():
            problem = "repeats an index or a name"
        if problem:
            raise UserError(f"{path}: line {number} {line.strip()!r} {problem}: correct this line")
        names[int(match[1])] = match[2]
        if match[3]:
            colours[int(match[1])] = tuple(int(n) for n in match.group(3, 4, 5))
    if not names:
        raise UserError(f"{path}: holds no class: write a line 'index<TAB>name' per class")
    return names, colours
