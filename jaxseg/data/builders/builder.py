"""What the builders share: features, checks before and while preparing, and how it is stored."""

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders import examples
from jaxseg.data.builders.archive import Archive, open_archive
from jaxseg.data.classes import Classes
from jaxseg.errors import UserError
from jaxseg.progress import Progress

# One example in an archive: (image member, label member), under its name.
Pairs = dict[str, tuple[str, str]]


class LocalInfo(tfds.core.DatasetInfo):
    """Asks no server what it knows of the data set, which also leaves a temporary folder."""

    def initialize_from_bucket(self) -> None:
        pass


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Prepares one data set from its archive in the download manager's manual directory.

    Stored are the image (JPEG), the label as train ids with 255 = ignore (PNG, one 8-bit channel)
    and the name. Examples are shuffled once, by a hash of their names, so that ``train[:10%]`` is
    a random tenth. TensorFlow is not needed: only encoded bytes are handed to the features.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "See docs/datasets.md."

    CLASSES: ClassVar[Classes]
    LABEL_IDS: ClassVar[Sequence[int]]  # the archive's number of each train id; 0 is ignored
    ARCHIVES: ClassVar[tuple[str, ...]]  # file names without suffix, the usual one first
    COUNTS: ClassVar[dict[str, int]]  # examples that each split must have
    ENCODED: ClassVar = ("image", "label")  # features that are stored as the bytes of a file

    @staticmethod
    def example(record: dict) -> dict:
        """What a source gives, from a stored record."""
        return {
            "image": examples.decode(record["image"], "RGB"),
            "label": examples.decode(record["label"], "L"),
            "name": record["name"].decode(),
        }

    @abc.abstractmethod
    def pairs(self, archive: Archive, split: str) -> Pairs:
        """The examples of one split; raises UserError where an image or a label is alone."""

    @abc.abstractmethod
    def stored_label(self, data: bytes, where: str) -> np.ndarray:
        """The archive's numbers [H,W] from the bytes of a label member."""

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        label = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        return LocalInfo(
            builder=self,
            description=f"{self.name}: train ids 0..{len(self.CLASSES) - 1}, 255 = ignore.",
            features=tfds.features.FeaturesDict(
                {"image": image, "label": label, "name": tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        folder = dl_manager.manual_dir
        splits = {}
        with open_archive(folder, self.ARCHIVES) as archive:
            for split, expected in self.COUNTS.items():
                splits[split] = self.pairs(archive, split)
                if len(splits[split]) != expected:
                    raise UserError(
                        f"{archive.path}: holds {len(splits[split])} examples of {self.name} "
                        f"{split}, expected {expected}: it is incomplete or another release; "
                        "docs/datasets.md names the right one"
                    )
        return {split: self._generate_examples(folder, split, p) for split, p in splits.items()}

    def _generate_examples(self, folder: Path, split: str, pairs: Pairs) -> Iterator:
        with (
            open_archive(folder, self.ARCHIVES) as archive,
            Progress(total=len(pairs), label=f"prepare {self.name} {split}") as progress,
        ):
            for done, (name, members) in enumerate(pairs.items(), start=1):
                yield name, self._example(archive, name, *members)
                progress.update(done)

    def _example(self, archive: Archive, name: str, image: str, label: str) -> dict:
        where = archive.where(label)
        picture, size = examples.jpeg(archive.read(image), archive.where(image))
        ids = examples.train_ids(
            self.stored_label(archive.read(label), where), self.LABEL_IDS, where
        )
        if ids.shape != size:
            raise UserError(
                f"{where}: label is {ids.shape[0]}x{ids.shape[1]} but its image {image} is "
                f"{size[0]}x{size[1]} (height x width): get the archive again"
            )
        return {"image": picture, "label": examples.png(ids), "name": name}


def pair(archive: Archive, images: dict[str, str], labels: dict[str, str]) -> Pairs:
    """{name: (image member, label member)}.

    Raises UserError: an image without a label, or a label without an image.
    """
    for have, lack, what in ((images, labels, "label"), (labels, images, "image")):
        alone = [member for name, member in have.items() if name not in lack]
        if alone:
            listed = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            raise UserError(
                f"{archive.path}: {len(alone)} of {len(have)} files have no {what} ({listed}): "
                "get the archive again"
            )
    return {name: (member, labels[name]) for name, member in images.items()}


def listed_names(archive: Archive, folder: str, split: str) -> list[str]:
    """The names in ``folder/split.txt``, one per line.

    Raises UserError: there is no such list, or it repeats a name.
    """
    lists = archive.files(folder, ".txt")
    if split not in lists:
        raise UserError(
            f"{archive.path}: no {folder}/{split}.txt: get the archive again (docs/datasets.md)"
        )
    names = archive.read(lists[split]).decode("utf-8", errors="replace").split()
    if len(set(names)) != len(names):
        raise UserError(f"{archive.where(lists[split])}: repeats a name: get the archive again")
    return names


def select(archive: Archive, files: dict[str, str], names: list[str], what: str) -> dict[str, str]:
    """The members of ``files`` that ``names`` lists, in that order.

    Raises UserError: a listed name has no file.
    """
    missing = [name for name in names if name not in files]
    if missing:
        raise UserError(
            f"{archive.path}: {len(missing)} listed names have no {what} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): "
            "get the archive again (docs/datasets.md)"
        )
    return {name: files[name] for name in names}
