"""A finished model on disk: ``model.safetensors`` and ``config.json`` in one folder."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from jaxseg import build
from jaxseg import config as configuration
from jaxseg.data.classes import Classes, is_name
from jaxseg.errors import UserError
from jaxseg.weights import load_weights, save_weights, write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class StoredModel:
    """Arrays (parameters and statistics, dotted names), configuration and classes of a model.

    graded: sides of the windows that its policy was trained for, whatever ``config`` is followed
    later; 2 alone is CTS's.
    """

    arrays: dict[str, np.ndarray]
    config: ConfigDict
    classes: Classes
    origin: str
    graded: tuple[int, ...] = (2,)


def save(
    directory: str, params: Mapping, stats: Mapping, config: ConfigDict, classes: Classes
) -> None:
    """Write both files; each is replaced as a whole or not at all."""
    folder = pathlib.Path(directory)
    stored = {
        "config": json.loads(configuration.to_json(config)),
        "classes": {"names": list(classes.names), "colours": [list(c) for c in classes.colours]},
    }
    write_atomically(folder / CONFIG, (json.dumps(stored, indent=2) + "\n").encode())
    save_weights(folder / WEIGHTS, dict(params) | dict(stats), {"format": "jaxseg"})


def load(directory: str) -> StoredModel:
    """Read a model folder. Nothing in it is executed. Raises `UserError`."""
    folder = pathlib.Path(directory)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG} in it; give the workdir of a finished training run")
    origin = str(folder / CONFIG)
    try:
        stored = json.loads((folder / CONFIG).read_bytes())
        names = tuple(str(name) for name in stored["classes"]["names"])
        colours = tuple((int(r), int(g), int(b)) for r, g, b in stored["classes"]["colours"])
        classes = _checked(names, colours)
        text = json.dumps(stored["config"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{origin}: damaged ({reason:.200}); restore it from the training run"
        ) from None
    config = configuration.from_json(text, origin)
    arrays, _ = load_weights(folder / WEIGHTS)
    return StoredModel(arrays, config, classes, str(folder), build.graded_sides(config))


def _checked(names: tuple[str, ...], colours: tuple[tuple[int, int, int], ...]) -> Classes:
    if not names or not all(map(is_name, names)):
        raise ValueError("no class, or one whose name cannot be shown")
    if any(not 0 <= part <= 255 for colour in colours for part in colour):
        raise ValueError("a colour beyond 0 to 255")
    return Classes(names, colours)


def check_classes(stored: StoredModel, classes: Classes) -> None:
    """Raises UserError: the data set has other classes than the model, or others first."""
    if classes.names != stored.classes.names:
        raise UserError(
            f"{stored.origin}: trained on {', '.join(stored.classes.names[:4])} ..., the data set "
            f"has {', '.join(classes.names[:4])} ...; use the classes it was trained on"
        )
