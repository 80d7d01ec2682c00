"""Pascal-Context, 59 classes (Mottaghi et al., 2014), from a VOC2010 folder with its masks.

The layout is that of mmsegmentation: JPEGImages/, SegmentationClassContext/ and
ImageSets/SegmentationContext/{train,val}.txt.
"""

import numpy as np

from jaxseg.data.builders import examples, pascal_context_classes
from jaxseg.data.builders.archive import Archive
from jaxseg.data.builders.builder import Pairs, SegmentationBuilder, listed_names, pair, select
from jaxseg.data.classes import make_classes

_LISTS = {"train": "train", "validation": "val"}


class PascalContext(SegmentationBuilder):
    """Masks hold 0 = background, which the 59-class setting ignores, and 1..59.

    4996 and 5104 examples are what the merged annotation file gives; the original 4998 and 5105
    of VOC2010 include three images that it lacks.
    """

    CLASSES = make_classes(pascal_context_classes.NAMES)
    LABEL_IDS = range(1, 60)
    ARCHIVES = ("VOC2010", "VOCdevkit/VOC2010")
    COUNTS = {"train": 4996, "validation": 5104}

    def pairs(self, archive: Archive, split: str) -> Pairs:
        # JPEGImages holds all of VOC2010, so only what the lists name is used and checked.
        names = listed_names(archive, "ImageSets/SegmentationContext", _LISTS[split])
        images = select(archive, archive.files("JPEGImages", ".jpg"), names, "image")
        labels = select(archive, archive.files("SegmentationClassContext", ".png"), names, "mask")
        return pair(archive, images, labels)

    def stored_label(self, data: bytes, where: str) -> np.ndarray:
        return examples.png_label(data, where)
