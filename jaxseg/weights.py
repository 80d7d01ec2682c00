"""Weights files: one safetensors file of a flat dict of arrays, with a digest of its content."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from jaxseg.errors import UserError

DIGEST = "sha256"
LISTED = 5  # names per kind of difference in an error message


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def digest(arrays: Mapping[str, np.ndarray], metadata: Mapping) -> str:
    """The sha256, in hexadecimal, of names, dtypes, shapes, values and JSON-able metadata."""
    layout = {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
    head = json.dumps([dict(metadata), layout], sort_keys=True)
    total = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        total.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def save_weights(
    path: str | os.PathLike, params: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write ``params`` (dotted name -> numpy or jax array) and ``metadata`` atomically.

    The metadata of the file also gets a sha256 of everything, because safetensors itself reads a
    flipped bit as a slightly different weight.
    """
    arrays = {name: np.asarray(params[name], order="C") for name in sorted(params)}
    header = dict(metadata) | {DIGEST: digest(arrays, metadata)}
    write_atomically(path, safetensors.numpy.save(arrays, header))


def load_weights(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a weights file: (name -> numpy array, metadata without the digest).

    Files of other programs have no digest and are taken as they are. Raises UserError if the file
    is missing, is no complete safetensors file, or differs from its digest.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            params = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); download or convert it again"
        ) from None
    expected = metadata.pop(DIGEST, None)
    if expected is not None and expected != digest(params, metadata):
        raise UserError(f"{path}: damaged, the content differs from its sha256; get it again")
    return params, metadata


def check_same(
    params: Mapping[str, np.ndarray], template_shapes: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raise UserError unless ``params`` has exactly the names and shapes of a model.

    ``origin`` says where the arrays come from and starts the message, which counts all missing,
    extra and wrongly shaped names together and lists the first of each.
    """
    shapes = {name: tuple(np.shape(value)) for name, value in params.items()}
    wanted = {name: tuple(shape) for name, shape in template_shapes.items()}
    missing = sorted(wanted.keys() - shapes.keys())
    extra = sorted(shapes.keys() - wanted.keys())
    wrong = sorted(n for n in wanted.keys() & shapes.keys() if wanted[n] != shapes[n])
    if not (missing or extra or wrong):
        return
    classes = _class_counts([(shapes[n], wanted[n]) for n in wrong])
    if classes and not (missing or extra):
        raise UserError(
            f"{origin}: the weights predict {classes[0]} classes, the config has {classes[1]}; "
            f"use the config they were made with, or other weights"
        )
    parts = [
        (missing, "missing", missing),
        (extra, "unknown to the model", extra),
        (wrong, "of another shape", [f"{n} {shapes[n]} instead of {wanted[n]}" for n in wrong]),
    ]
    report = "; ".join(
        f"{len(names)} {kind} ({_listed(lines)})" for names, kind, lines in parts if names
    )
    raise UserError(f"{origin}: does not fit the model: {report}; use the config it was made with")


def _class_counts(pairs) -> tuple[int, int] | None:
    """(have, want) if all shapes differ in one axis each and by the same number of classes.

    Some arrays have an axis of K + 1 ("no object") beside those of K: the smallest pair is K.
    """
    axes = []
    for have, want in pairs:
        differing = [(h, w) for h, w in zip(have, want, strict=False) if h != w]
        if len(have) != len(want) or len(differing) != 1:
            return None
        axes += differing
    if len({w - h for h, w in axes}) != 1 or len(set(axes)) > 2:
        return None
    return min(axes)


def _listed(lines: list[str]) -> str:
    more = f", and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return ", ".join(lines[:LISTED]) + more
