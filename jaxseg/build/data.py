"""Images and labels of a split, and the training transforms."""

from ml_collections import ConfigDict

from jaxseg.build.checks import one_of, two_sides
from jaxseg.data.class_transforms import ClassRecipe
from jaxseg.data.classes import Classes, Source, nearest
from jaxseg.data.transforms import Recipe
from jaxseg.errors import UserError

MAP_SETS = ("folder", "shapes", "ade20k", "pascal_context", "coco_stuff10k")  # class per pixel
CLASS_SETS = ("class_folder", "shape_classes", "imagenet2012")  # class per image
DATA_SETS = (*MAP_SETS, *CLASS_SETS)


def make_source(config: ConfigDict, which: str) -> Source:
    """Images and labels of a split: ``train``, ``val`` or ``test`` as the configuration names them,
    or any split of the data set itself."""
    data = config.data
    one_of("data.name", data.name, DATA_SETS)
    split = {"train": data.train, "val": data.val, "test": data.test}.get(which, which)
    if data.name in ("shapes", "shape_classes"):
        from jaxseg.data.classification import Grounds
        from jaxseg.data.shapes import shapes

        parts = {"train": 0, "val": 1, "test": 2}
        if split not in parts:
            raise UserError(f"data split {split!r}: shapes has train, val and test")
        index = parts[split]
        scenes = shapes(data.count[index], data.size, seed=index)
        return scenes if data.name == "shapes" else Grounds(scenes)
    if not data.root:
        raise UserError("data.root is empty; say where the data set lies: --config.data.root=DIR")
    if data.name == "folder":
        from jaxseg.data.folder import folder

        return folder(data.root, split, data.ignore)
    if data.name == "class_folder":
        from jaxseg.data.classification import class_folder

        return class_folder(data.root, split)
    from jaxseg.data.builders import source

    return source(data.name, data.root, split)


def class_count(config: ConfigDict) -> int:
    """How many classes the data set has; of a prepared one without looking at its files."""
    one_of("data.name", config.data.name, DATA_SETS)
    if config.data.name in ("folder", "shapes", "class_folder", "shape_classes"):
        return len(make_source(config, "train").classes)
    from jaxseg.data.builders import BUILDERS

    return len(BUILDERS[config.data.name].CLASSES)


def foreground(config: ConfigDict, classes: Classes) -> tuple[int, ...]:
    """Train ids of ``eval.foreground``. Raises UserError: a name that no class has."""
    named = tuple(config.eval.foreground)
    for name in named:
        if name not in classes.names:
            raise UserError(
                f"config.eval.foreground names '{name}', which is no class of the data set; "
                f"nearest is '{nearest(name, classes.names)}'; () tells nothing apart"
            )
    return tuple(map(classes.names.index, named))


def recipe(config: ConfigDict) -> Recipe:
    """The training transforms."""
    data = config.data
    one_of("data.name", data.name, MAP_SETS)
    two_sides("data.resize", data.resize)
    two_sides("data.crop", data.crop)
    return Recipe(
        long=data.resize[0],
        short=data.resize[1],
        crop=tuple(data.crop),
        ratio=tuple(data.ratio),
        cat_max_ratio=data.cat_max_ratio,
        flip=data.flip,
        distort=data.distort,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def class_recipe(config: ConfigDict, classes: int) -> ClassRecipe:
    """The training transforms of a classifier."""
    data = config.data
    one_of("data.name", data.name, CLASS_SETS)
    two_sides("data.crop", data.crop)
    low, high = data.area
    if not 0.0 < low <= high <= 1.0:
        raise UserError(f"config.data.area={data.area}: give two shares, rising, above 0, up to 1")
    return ClassRecipe(
        classes=classes,
        crop=tuple(data.crop),
        area=(low, high),
        flip=data.flip,
        smoothing=data.smoothing,
        mixup=data.mixup,
        cutmix=data.cutmix,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
