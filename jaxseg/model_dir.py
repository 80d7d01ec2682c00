"""A finished model on disk: ``model.safetensors`` and ``config.json`` in one folder."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from jaxseg import config as configuration
from jaxseg.data.classes import Classes, is_name
from jaxseg.errors import UserError
from jaxseg.models.network import shapes
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.weights import check_same, load_weights, save_weights, write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"
POLICY = "policy."  # names of the arrays of a segmenter's policy


@dataclass(frozen=True)
class StoredModel:
    """Arrays (parameters and statistics, dotted names), configuration and classes of a model."""

    arrays: dict[str, np.ndarray]
    config: ConfigDict
    classes: Classes
    origin: str


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
    return StoredModel(arrays, config, classes, str(folder))


def _checked(names: tuple[str, ...], colours: tuple[tuple[int, int, int], ...]) -> Classes:
    if not names or not all(map(is_name, names)):
        raise ValueError("no class, or one whose name cannot be shown")
    if any(not 0 <= part <= 255 for colour in colours for part in colour):
        raise ValueError("a colour beyond 0 to 255")
    return Classes(names, colours)


def arrays_for(stored: StoredModel, config: ConfigDict, spec: SegmenterSpec) -> dict:
    """The model's arrays, with those of its policy where they are not stored beside them.

    Raises UserError: arrays that do not fit ``spec``, or are no floats.
    """
    arrays = dict(stored.arrays)
    strange = [
        name for name, value in arrays.items() if value.dtype.kind not in "fV"
    ]  # V: bfloat16
    if strange:
        raise UserError(
            f"{stored.origin}/{WEIGHTS}: {len(strange)} arrays are no floats, the first is "
            f"{strange[0]} ({arrays[strange[0]].dtype}); get the file again"
        )
    if spec.merge is not None and not any(name.startswith(POLICY) for name in arrays):
        arrays |= policy_arrays(config, spec)
    wanted = {name: shape.shape for part in shapes(spec) for name, shape in part.items()}
    if config.method.policy == "oracle":  # its windows come with every batch
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith(POLICY)}
    if spec.merge is None or config.method.policy == "oracle":
        arrays = {name: value for name, value in arrays.items() if not name.startswith(POLICY)}
    check_same(arrays, wanted, f"{stored.origin}/{WEIGHTS}")
    return arrays


def policy_arrays(config: ConfigDict, spec: SegmenterSpec) -> dict[str, np.ndarray]:
    """Arrays of the policy that ``config.method.policy`` names, as the segmenter calls them."""
    where = config.method.policy
    if where in ("oracle", "random"):
        return {}
    if not where:
        raise UserError(
            f"config.method.merge={config.method.merge!r} needs a policy: name the workdir of its "
            f"training with config.method.policy=DIR (or oracle, to evaluate with labels)"
        )
    found, _ = load_weights(pathlib.Path(where) / WEIGHTS)
    found = {POLICY + name: value for name, value in found.items()}
    wanted = {n: s.shape for part in shapes(spec) for n, s in part.items() if n.startswith(POLICY)}
    # One trained for more sides serves fewer.
    check_same({n: v for n, v in found.items() if n in wanted}, wanted, f"{where}/{WEIGHTS}")
    return {name: found[name] for name in wanted}
