"""COCO-Stuff-10K v1.1, 171 classes (Caesar et al., 2018), from cocostuff-10k-v1.1.zip."""

import io

import numpy as np
import scipy.io

from jaxseg.data.builders import coco_stuff10k_classes
from jaxseg.data.builders.archive import Archive
from jaxseg.data.builders.builder import Pairs, SegmentationBuilder, listed_names, pair, select
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError

_NAMES_OF_V1_0 = 172


class CocoStuff10k(SegmentationBuilder):
    """images/*.jpg, annotations/*.mat (MATLAB, field S) and imageLists/{train,test}.txt."""

    CLASSES = make_classes(coco_stuff10k_classes.NAMES)
    LABEL_IDS = coco_stuff10k_classes.LABEL_IDS
    ARCHIVES = ("cocostuff-10k-v1.1",)
    COUNTS = {"train": 9000, "test": 1000}

    def pairs(self, archive: Archive, split: str) -> Pairs:
        images, labels = archive.files("images", ".jpg"), archive.files("annotations", ".mat")
        pair(archive, images, labels)  # nothing may be alone in the whole archive
        names = listed_names(archive, "imageLists", split)
        images = select(archive, images, names, "image")
        return pair(archive, images, select(archive, labels, names, "annotation"))

    def stored_label(self, data: bytes, where: str) -> np.ndarray:
        try:
            fields = scipy.io.loadmat(io.BytesIO(data), variable_names=("S", "names"))
        # scipy promises no exception type for a damaged file.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{where}: cannot read this MATLAB file ({reason}): get the archive again"
            ) from None
        stored = fields.get("S")
        if stored is None or stored.ndim != 2 or stored.dtype.kind not in "uif":
            raise UserError(
                f"{where}: has no label map S[height,width] of numbers: get the archive again"
            )
        # v1.0 counts from 1 (1 = unlabeled) over 172 names: most numbers would pass as v1.1.
        if np.size(fields.get("names")) == _NAMES_OF_V1_0:
            raise UserError(
                f"{where}: labels of v1.0, which are numbered otherwise: get cocostuff-10k-v1.1.zip"
            )
        return stored
