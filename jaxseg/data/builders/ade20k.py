"""ADE20K SceneParsing, 150 classes (Zhou et al., 2017), from ADEChallengeData2016.zip.

Not the ``scene_parse150`` of tensorflow-datasets: that one holds instance maps of 100 classes.
"""

import numpy as np

from jaxseg.data.builders import ade20k_classes, examples
from jaxseg.data.builders.archive import Archive
from jaxseg.data.builders.builder import Pairs, SegmentationBuilder, pair
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError

_FOLDERS = {"train": "training", "validation": "validation"}


class Ade20k(SegmentationBuilder):
    """images/{training,validation}/*.jpg and annotations/.../*.png: 0 = ignore, 1..150."""

    CLASSES = make_classes(ade20k_classes.NAMES)
    LABEL_IDS = range(1, 151)
    ARCHIVES = ("ADEChallengeData2016",)
    COUNTS = {"train": 20210, "validation": 2000}

    def pairs(self, archive: Archive, split: str) -> Pairs:
        folder = _FOLDERS[split]
        labels = archive.files(f"annotations/{folder}", ".png")
        if not labels and archive.files(f"annotations_instance/{folder}", ".png"):
            raise UserError(
                f"{archive.path}: holds annotations_instance (instance maps of 100 classes) but no "
                "annotations: get ADEChallengeData2016.zip of the scene parsing benchmark"
            )
        return pair(archive, archive.files(f"images/{folder}", ".jpg"), labels)

    def stored_label(self, data: bytes, where: str) -> np.ndarray:
        return examples.png_label(data, where)
