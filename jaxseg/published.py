"""How published models are run: what no array of a checkpoint tells."""

from dataclasses import dataclass

from jaxseg.data.builders import ade20k_classes, coco_stuff10k_classes, pascal_context_classes
from jaxseg.data.builders.imagenet2012 import Imagenet2012
from jaxseg.data.classes import Classes, make_classes


@dataclass(frozen=True)
class Published:
    """One published recipe: images are fitted into ``resize`` (long, short) and seen in square
    windows of ``crop`` pixels, ``stride`` apart. ``heads``: attention heads of an ATM decoder.

    ``imagenet``: normalised by ImageNet's mean and deviation, otherwise by 127.5 twice.
    """

    model: str
    variants: tuple[str, ...]
    classes: int
    crop: int
    resize: tuple[int, int]
    stride: int
    imagenet: bool = False
    heads: int | None = None


RECIPES = (
    # DToP's released configurations
    Published("dtop", ("B",), 150, 512, (2048, 512), 341, imagenet=True, heads=6),
    Published("dtop", ("L",), 150, 640, (2560, 640), 320, heads=8),
    Published("dtop", ("L",), 171, 512, (2048, 512), 341, heads=16),
    Published("dtop", ("L",), 59, 480, (2048, 520), 320, heads=16),
    # SegViT's; B is from its issue 2. Pascal-Context: a minimum of 480 beside a scale of (520, 520)
    # makes the short side 520 for every image in mmsegmentation 0.x.
    Published("segvit", ("B",), 150, 512, (2048, 512), 341, imagenet=True, heads=12),
    Published("segvit", ("L",), 150, 640, (2048, 640), 608, heads=16),
    Published("segvit", ("L",), 171, 512, (2048, 512), 341, heads=16),
    Published("segvit", ("L",), 59, 480, (2048, 520), 320, heads=16),
    Published("segvit", ("L",), 60, 480, (2048, 520), 320, heads=16),
    # mmsegmentation's SETR; B is the one of DToP's repository
    Published("setr", ("L",), 150, 512, (2048, 512), 341, imagenet=True),
    Published("setr", ("L",), 19, 768, (2049, 1025), 512, imagenet=True),
    Published("setr", ("B",), 150, 512, (2048, 512), 480, imagenet=True),
    # Segmenter's own code, AugReg backbones; 640: the stride of mmsegmentation's port
    Published("segmenter", ("Ti", "S", "B", "L"), 150, 512, (2048, 512), 512),
    Published("segmenter", ("L",), 150, 640, (2560, 640), 608),
    Published("segmenter", ("Ti", "S", "B", "L"), 60, 480, (4160, 520), 320),
    Published("segmenter", ("Ti", "S", "B", "L"), 19, 768, (2048, 1024), 512),
    # CTS on it; 103 windows shared, config.method.windows
    Published("cts", ("Ti", "S", "B", "L"), 150, 512, (2048, 512), 512),
    # mmsegmentation's port of it
    Published("mmseg_segmenter", ("Ti", "S", "B"), 150, 512, (2048, 512), 480),
    Published("mmseg_segmenter", ("L",), 150, 640, (2048, 640), 608),
)

# Blocks (0-based) that heads read, by model, depth and number of heads or levels.
_TAPS = {
    ("dtop", 12, 3): (5, 7, 11),
    ("dtop", 24, 3): (7, 15, 23),
    ("segvit", 12, 3): (5, 7, 11),
    ("segvit", 24, 3): (7, 15, 23),
    ("setr", 12, 4): (3, 6, 9, 11),
    ("setr", 24, 4): (9, 14, 19, 23),
}

_CITYSCAPES = """
road 128 64 128, sidewalk 244 35 232, building 70 70 70, wall 102 102 156, fence 190 153 153,
pole 153 153 153, traffic light 250 170 30, traffic sign 220 220 0, vegetation 107 142 35,
terrain 152 251 152, sky 70 130 180, person 220 20 60, rider 255 0 0, car 0 0 142, truck 0 0 70,
bus 0 60 100, train 0 80 100, motorcycle 0 0 230, bicycle 119 11 32
"""

DATA_SETS = {  # classes: data set and split to evaluate on
    150: ("ade20k", "validation"),
    171: ("coco_stuff10k", "test"),
    59: ("pascal_context", "validation"),
}


def taps_of(model: str, depth: int, count: int) -> tuple[int, ...] | None:
    """The blocks that ``count`` heads or levels read: a single one the last; None if unknown."""
    return (depth - 1,) if count == 1 else _TAPS.get((model, depth, count))


def recipe_of(model: str, variant: str, classes: int, crop: int | None) -> Published | None:
    """The published recipe of such a model, if there is one."""
    for recipe in RECIPES:
        if (recipe.model, recipe.classes, recipe.crop) == (model, classes, crop):
            if variant in recipe.variants:
                return recipe
    return None


def classes_of(count: int) -> Classes:
    """The classes of the data set that has so many; "class 0" ... where none is known."""
    names = {
        150: ade20k_classes.NAMES,
        171: coco_stuff10k_classes.NAMES,
        59: pascal_context_classes.NAMES,
        60: ("background", *pascal_context_classes.NAMES),
        1000: Imagenet2012.CLASSES.names,
    }
    if count == 19:
        rows = [row.split() for row in _CITYSCAPES.split(",")]
        colours = [tuple(map(int, row[-3:])) for row in rows]
        return make_classes([" ".join(row[:-3]) for row in rows], colours)
    return make_classes(names.get(count) or [f"class {k}" for k in range(count)])
