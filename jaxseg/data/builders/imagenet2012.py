"""ImageNet (ILSVRC 2012), 1000 classes, from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.

Names, version and features are those of tensorflow-datasets' own builder, which needs TensorFlow to
prepare it: what that one has written as array_record is read as well.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders import examples
from jaxseg.data.builders.archive import BROKEN, Archive, open_archive
from jaxseg.data.builders.builder import LocalInfo
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError
from jaxseg.progress import Progress

_LISTS = "datasets/imagenet2012"  # of the package tensorflow-datasets


def _listed(name: str) -> tuple[str, ...]:
    return tuple((tfds.core.tfds_path(_LISTS) / name).read_text().split())


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stored are the image (JPEG), the number of its class and the name of its file.

    Class k is the k-th WordNet id in alphabetical order, as of a folder per class.
    """

    VERSION = tfds.core.Version("5.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "See docs/datasets.md."

    CLASSES = make_classes(_listed("labels.txt"))
    ARCHIVES = ("ILSVRC2012_img_train",)
    VALIDATION = ("ILSVRC2012_img_val",)
    COUNTS = {"train": 1_281_167, "validation": 50_000}
    ENCODED = ("image",)  # features that are stored as the bytes of a file

    @staticmethod
    def example(record: dict) -> dict:
        """What a source gives, from a stored record."""
        return {
            "image": examples.decode(record["image"], "RGB"),
            "label": np.int32(record["label"]),
            "name": record["file_name"].decode(),
        }

    @staticmethod
    def validation_classes() -> tuple[str, ...]:
        """Those of the validation images, which the archive does not tell, by name of the file."""
        return _listed("validation_labels.txt")

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalInfo(
            builder=self,
            description="ILSVRC 2012: the class of an image.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(self.CLASSES.names)),
                    "file_name": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        folder = dl_manager.manual_dir
        with open_archive(folder, self.VALIDATION):
            pass  # is there at all, before hours are spent on the other
        return {"train": self._train(folder), "validation": self._validation(folder)}

    def _generate_examples(self, found: Iterator) -> Iterator:
        return found

    def _train(self, folder: Path) -> Iterator:
        """The archive holds an archive per class."""
        with open_archive(folder, self.ARCHIVES) as archive:
            of_class = {PurePosixPath(m).stem: m for m in archive.members if m.endswith(".tar")}
            if set(of_class) != set(self.CLASSES.names):
                raise UserError(
                    f"{archive.path}: holds {len(of_class)} archives of a class, not those of the "
                    f"{len(self.CLASSES)} classes: get the archive again"
                )
            yield from self._counted(archive, "train", self._of_classes(archive, of_class))

    @staticmethod
    def _of_classes(archive: Archive, of_class: dict[str, str]) -> Iterator:
        for name, member in of_class.items():
            try:
                with tarfile.open(fileobj=io.BytesIO(archive.read(member)), mode="r:") as inner:
                    for each in inner:
                        if each.isreg():
                            yield (
                                PurePosixPath(each.name).name,
                                name,
                                inner.extractfile(each).read(),
                            )
            except BROKEN as error:
                raise UserError(
                    f"{archive.where(member)}: no readable tar ({error}): get the archive again"
                ) from None

    def _validation(self, folder: Path) -> Iterator:
        with open_archive(folder, self.VALIDATION) as archive:
            files = sorted(m for m in archive.members if m.lower().endswith(".jpeg"))
            classes = self.validation_classes()
            if len(files) != len(classes):
                raise UserError(
                    f"{archive.path}: holds {len(files)} images, expected {len(classes)}: get the "
                    "archive again"
                )
            found = (
                (PurePosixPath(file).name, name, archive.read(file))
                for file, name in zip(files, classes, strict=True)
            )
            yield from self._counted(archive, "validation", found)

    def _counted(self, archive: Archive, split: str, found: Iterator) -> Iterator:
        """Checked examples, exactly as many as there must be."""
        total = self.COUNTS[split]
        done = 0
        with Progress(total=total, label=f"prepare {self.name} {split}") as progress:
            for done, (file, name, data) in enumerate(found, start=1):
                image, _ = examples.jpeg(data, archive.where(file))
                yield file, {"image": image, "label": name, "file_name": file}
                progress.update(min(done, total))
        if done != total:
            raise UserError(
                f"{archive.path}: holds {done} images of {split}, expected {total}: it is "
                "incomplete or another release; get the archive again"
            )
