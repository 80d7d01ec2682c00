"""Reads every example of a data set before training does, and reports all that is wrong.

    python -m jaxseg.tools.check_data --config=configs/segvit_vitti_camvid.py --out=check_data

Prints counts, sizes and each class's share of the pixels, or of the images where each has one
class; writes a page of samples per split and all problems to ``--out``. Exit code 1 when there is
any problem.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from PIL import Image

from jaxseg import build, cli, viz
from jaxseg.data.classes import IGNORE, Classes, Source
from jaxseg.data.transforms import keep_ratio_size, resize
from jaxseg.errors import UserError
from jaxseg.progress import Progress

_THREADS = 4
_SAMPLES = 8
_SAMPLE_SIZE = 320, 240  # long, short
_PRINTED = 20


@dataclass(frozen=True)
class Report:
    """What `check` found in one split; ``problems`` is one line per faulty file."""

    classes: Classes
    count: int  # examples in the split, readable or not
    sizes: dict[tuple[int, int], int]  # (height, width) -> examples
    pixels: np.ndarray  # int64[K]; as ``images`` where an image has one class
    ignored: int  # pixels
    images: np.ndarray  # int64[K]: examples that show the class
    problems: tuple[str, ...]
    unit: str = "pixels"  # or "images": what has a class

    def __str__(self) -> str:
        """The report as short lines, without the problems."""
        heights, widths = zip(*self.sizes, strict=True) if self.sizes else ((0,), (0,))
        total = max(1, self.pixels.sum() + self.ignored)
        wide = max(len(name) for name in self.classes.names)
        lines = [
            f"{self.count} examples, {len(self.classes)} classes, {len(self.sizes)} sizes, "
            f"height {min(heights)}..{max(heights)}, width {min(widths)}..{max(widths)}"
        ]
        for name, pixels, images in zip(self.classes.names, self.pixels, self.images, strict=True):
            share = f"{pixels / total:7.2%} of {self.unit}"
            lines.append(f"  {name:{wide}} {share} {images:7d} images")
        if self.unit == "pixels":
            lines.append(f"  {'(ignored)':{wide}} {self.ignored / total:7.2%} of pixels")
        absent = [
            n for n, images in zip(self.classes.names, self.images, strict=True) if not images
        ]
        if absent:
            lines.append(f"  note: never shown, so without a score here: {', '.join(absent)}")
        return "\n".join(lines)


def check(source: Source, label: str = "check") -> Report:
    """Reads all of ``source``; ``label`` names the progress line. Broken files do not stop it."""
    sizes: Counter[tuple[int, int]] = Counter()
    known = len(source.classes)
    counts, images = np.zeros(known, np.int64), np.zeros(known, np.int64)
    ignored, unit, problems = 0, "pixels", []

    def read(index: int) -> tuple[tuple[int, int], np.ndarray, int, str] | str:
        try:
            sample = source[index]
        except UserError as error:
            return str(error)
        image, labels, name = sample["image"], sample["label"], sample["name"]
        size = labels.shape or image.shape[:2]
        if image.shape != (*size, 3):
            return f"{name}: image {image.shape}, label {size}: prepare it again"
        values = np.ravel(labels)
        if labels.ndim:  # 255 may be the one class of an image
            values = values[values != IGNORE]
        wrong = values[(values < 0) | (values >= known)]
        if wrong.size:
            return f"{name}: label value {wrong.min()} but {known} classes: prepare it again"
        found = np.bincount(values, minlength=known)
        return size, found, labels.size - values.size, "pixels" if labels.ndim else "images"

    with ThreadPoolExecutor(_THREADS) as pool, Progress(len(source), label) as progress:
        for done, result in enumerate(pool.map(read, range(len(source))), start=1):
            if isinstance(result, str):
                problems.append(result)
            else:
                size, found, left_out, unit = result
                sizes[size] += 1
                counts += found
                images += found > 0
                ignored += left_out
            progress.update(done)
    if sizes and not counts.any():
        problems.append(
            "every pixel of the split is ignored: check config.data.ignore and the labels"
        )
    return Report(
        source.classes,
        len(source),
        dict(sizes),
        counts,
        ignored,
        images,
        tuple(problems),
        unit,
    )


def save_samples(source: Source, path: Path) -> None:
    """Writes a page of pictures beside their labels, evenly spread over the split, as PNG.

    The one class of an image stands above it. Examples that cannot be read are left out.
    """
    classes = source.classes
    rows, titles = [], []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLES).astype(int)):
        try:
            sample = source[int(index)]
        except UserError:
            continue
        label, name = sample["label"], sample["name"]
        size = keep_ratio_size(sample["image"].shape[:2], *_SAMPLE_SIZE)
        image = resize(sample["image"], size, cv2.INTER_AREA)
        if label.ndim:
            label = resize(label, size, cv2.INTER_NEAREST)
            rows.append([image, viz.overlay(image, label, classes)])
            titles.append(name)
        elif 0 <= label < len(classes):
            rows.append([image])
            titles.append(f"{classes.names[label]}: {name}")
    if not rows or len(rows[0]) > 1:
        rows.append([viz.legend(classes)])
        titles.append("classes")
    Image.fromarray(viz.sheet(rows, titles)).save(path)


def main(argv: list[str]) -> int:
    """Checks every split that the configuration names; returns 1 when there is any problem."""
    del argv
    config, out = flags.FLAGS.config, Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    for which in ("train", "val", "test"):
        if not config.data.get(which):
            continue
        try:
            source = build.make_source(config, which)
        except UserError as error:
            problems.append(f"{which}: {error}")
            continue
        report = check(source, which)
        print(f"{which}: {report}")
        problems += [f"{which}: {problem}" for problem in report.problems]
        save_samples(source, out / f"{which}.png")
    (out / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems))
    for problem in problems[:_PRINTED]:
        print(problem)
    more = f", the rest is in {out / 'problems.txt'}" if len(problems) > _PRINTED else ""
    print(f"problems: {len(problems)}{more}; samples are in {out}")
    return 1 if problems else 0


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("out", "check_data", "Folder for the pages of samples.")
    cli.run(main)
