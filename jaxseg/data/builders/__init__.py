"""ADE20K, Pascal-Context, COCO-Stuff-10K and ImageNet, prepared once and read through
tensorflow-datasets.

TensorFlow itself is neither needed nor imported. docs/datasets.md says where to get the archives.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders.ade20k import Ade20k
from jaxseg.data.builders.archive import open_archive
from jaxseg.data.builders.builder import SegmentationBuilder
from jaxseg.data.builders.coco_stuff10k import CocoStuff10k
from jaxseg.data.builders.imagenet2012 import Imagenet2012
from jaxseg.data.builders.pascal_context import PascalContext
from jaxseg.data.classes import Classes
from jaxseg.errors import UserError

BUILDERS: dict[str, type[SegmentationBuilder | Imagenet2012]] = {
    builder.name: builder for builder in (Ade20k, PascalContext, CocoStuff10k, Imagenet2012)
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """Source over the records of one split; see `source`."""

    classes: Classes
    records: Sequence[dict]
    example: Callable[[dict], dict]  # of a record, as the builder stores it

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        # The reader itself knows no negative index and raises ValueError past the end.
        return self.example(self.records[range(len(self))[index]])


def prepare(name: str, archives: str | Path, root: str | Path) -> Path:
    """Writes data set ``name`` under ``root`` from its archive in folder ``archives``.

    Returns the folder of the result, which appears under its final name only when it is complete.
    A data set that is already there is kept as it is; what an interrupted run left is removed.
    Do not prepare the same data set twice at once.

    Raises UserError: unknown name, archive missing, incomplete, damaged or of another data set.
    """
    folder = _folder(name, root)
    if folder.exists():
        return folder
    with open_archive(archives, BUILDERS[name].ARCHIVES):
        pass  # refuses before tensorflow-datasets writes or says anything
    for left_over in folder.parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*"):
        shutil.rmtree(left_over)
    tfds.disable_progress_bar()  # ours knows the total
    builder = BUILDERS[name](data_dir=str(root), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(archives))
    with tempfile.TemporaryDirectory() as unused:  # would be root/downloads, empty
        builder.download_and_prepare(download_dir=unused, download_config=config)
    return folder


def source(name: str, root: str | Path, split: str) -> Prepared:
    """Opens one split of a data set that `prepare` wrote under ``root``.

    ``split`` is written as in tensorflow-datasets: ``train``, ``train[:10%]``,
    ``train[:100]+validation``.

    Raises UserError: unknown name or split, not prepared.
    """
    folder = _folder(name, root)
    if not folder.exists():
        raise UserError(
            f"{folder}: {name} is not prepared there: run python -m jaxseg.tools.prepare_data "
            f"--name={name} --archives=DIR --root={root}"
        )
    kind = BUILDERS[name]
    decoders = dict.fromkeys(kind.ENCODED, tfds.decode.SkipDecoding())
    builder = tfds.builder_from_directory(folder)
    try:
        records = builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data split '{split}' of {name} is not understood ({reason}): "
            f"it has {', '.join(builder.info.splits)}; slices look like train[:10%]"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"{folder}: stored in a format without random access: prepare it again with "
            f"file_format=array_record, or with python -m jaxseg.tools.prepare_data"
        ) from None
    return Prepared(kind.CLASSES, records, kind.example)


def _folder(name: str, root: str | Path) -> Path:
    if name not in BUILDERS:
        raise UserError(f"unknown data set '{name}': choose one of {', '.join(BUILDERS)}")
    return Path(root) / name / str(BUILDERS[name].VERSION)
