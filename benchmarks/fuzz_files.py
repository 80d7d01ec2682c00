"""Readers of single files from outside, with valid files to damage.

Everything is small, so that most of the time goes into checks and not into pixels and weights.
"""

import functools
import importlib
import io
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from PIL import Image

from benchmarks import format_mutations as formats
from benchmarks.mutations import Mutation, anyhow, text_line
from jaxseg import foreign
from jaxseg.convert.files import read_arrays
from jaxseg.data.folder import folder
from jaxseg.data.images import read_image, read_label
from jaxseg.weights import load_weights
from tests.foreign_states import mmseg_vit, setr
from tests.torch_writer import Saved


class Sample(NamedTuple):
    """Files of a valid input by name, and which of them may be damaged in which ways."""

    files: dict[str, bytes]
    damages: dict[str, tuple[Mutation, ...]]


class Reader(NamedTuple):
    """``read`` takes the folder with the files and returns what a command would print of them."""

    samples: tuple[Sample, ...]
    read: Callable[[pathlib.Path], str]


ARRAYS = {
    "blocks.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "head.bias": np.zeros(7, np.float16),
    "bn.num_batches_tracked": np.array(7),
    "mask": np.array([True, False]),
}


def _one(name: str, content: bytes, *damages: Mutation) -> Sample:
    return Sample({name: content}, {name: (anyhow, *damages)})


def _read_arrays(where: pathlib.Path) -> str:
    for path in where.iterdir():
        read_arrays(path)
    return ""


def _torch(kind: str) -> Reader:
    saved = Saved(view=() if kind == "zip" else (None,))
    tree = {"epoch": 3, "state_dict": {name: saved(array) for name, array in ARRAYS.items()}}
    with tempfile.TemporaryDirectory() as where:
        content = saved.write(kind, pathlib.Path(where, "a.pth"), tree).read_bytes()
    structured = formats.zip_member(_opcodes) if kind == "zip" else formats.chained
    return Reader((_one("a.pth", content, structured),), _read_arrays)


def _opcodes(content: bytes, draw) -> bytes:
    return formats.opcodes(content, draw) if content[:1] == b"\x80" else anyhow(content, draw)


def _safetensors() -> Reader:
    def read(where):
        load_weights(where / "a.safetensors")
        return _read_arrays(where)

    content = safetensors.numpy.save(ARRAYS, {"format": "jaxseg"})
    return Reader((_one("a.safetensors", content, formats.safetensors_header),), read)


def _npz() -> Reader:
    samples = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **ARRAYS)
        structured = (formats.zip_member(formats.npy_header), formats.zip_member(anyhow))
        samples.append(_one("a.npz", stream.getvalue(), *structured))
    return Reader(tuple(samples), _read_arrays)


def _states() -> Reader:
    """Names and shapes of another program's checkpoint, as `jaxseg.load` takes them."""
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    config.model.taps = (2,)
    side = config.data.crop[0] // config.model.patch
    state = mmseg_vit(32, 3, side * side, patch=8, final_norm=True)
    state |= setr("decode_head.", 32, 16, 4)
    content = safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in state.items()})

    def read(where):
        arrays = read_arrays(where / "a.safetensors")
        foreign.model_of(arrays, config, "a.safetensors")
        return ""

    return Reader(
        (_one("a.safetensors", content, formats.safetensors_header, _arrays, _arrays),), read
    )


def _arrays(content: bytes, draw) -> bytes:
    """One or two arrays taken out, or of another name, shape, type or size."""
    arrays = safetensors.numpy.load(content)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(sorted(arrays))
        array = arrays.pop(name)
        digits = draw.choice(("99999999999999999999", "0", "-1", "7", "x", "\x1b[2J"))
        names = [name, name, name, re.sub(r"\d+", digits, name), name + ".weight", "module." + name]
        shapes = [array.shape[::-1], (-1,), (1, -1), (*array.shape, 1), (*array.shape, 1, 1)]
        others = [array.reshape(draw.choice(shapes)), array[..., :0], np.repeat(array[None], 2, 0)]
        others += [array.astype(draw.choice((np.int8, np.bool_, np.float16))), array * np.nan]
        if draw.randrange(5):
            arrays[draw.choice(names)] = np.ascontiguousarray(draw.choice([array, *others]))
    return safetensors.numpy.save(arrays)


def _picture(form: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    image = Image.fromarray(pixels).convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, form, **({"exif": exif} if form in ("JPEG", "WEBP") else {}), **options)
    return stream.getvalue()


def _pictures() -> Reader:
    kinds = [("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB")]
    kinds += [("PPM", "RGB"), ("JPEG2000", "RGB"), ("TIFF", "I;16"), ("TIFF", "F")]
    samples = [_one(f"{form}.x", _picture(form, mode)) for form, mode in kinds]
    for packed in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        samples.append(_one(f"{packed}.x", _picture("TIFF", compression=packed)))
    for mode in ("RGB", "RGBA", "LA", "I;16"):
        samples.append(_one(f"{mode}.x", _picture("PNG", mode), formats.png_chunk))
    return Reader(tuple(samples), functools.partial(_each, read_image))


def _labels() -> Reader:
    modes = [("P", {}), ("L", {}), ("1", {}), ("P", {"bits": 2}), ("L", {"bits": 4}), ("RGB", {})]
    samples = [_one("a.png", _picture("PNG", m, **o), formats.png_chunk) for m, o in modes]
    samples += [_one("a.jpg", _picture("JPEG", "L")), _one("a.tif", _picture("TIFF", "L"))]
    return Reader(tuple(samples), functools.partial(_each, read_label))


def _each(read: Callable, where: pathlib.Path) -> str:
    for path in where.iterdir():
        read(path)
    return ""


def _classes() -> Reader:
    text = "".join(f"{k}\tclass {k}\t{k},{k},{255 - k}\n" for k in range(5)) + "5\tsky\n255\tvoid\n"
    files = {"classes.txt": text.encode(), "images/train/a.png": b"", "labels/train/a.png": b""}
    damages = {"classes.txt": (anyhow, text_line, text_line)}

    def read(where):
        return " ".join(folder(where, "train").classes.names)

    return Reader((Sample(files, damages),), read)


FILES: dict[str, Callable[[], Reader]] = {
    "pth-zip": functools.partial(_torch, "zip"),
    "pth-legacy": functools.partial(_torch, "legacy"),
    "safetensors": _safetensors,
    "npz": _npz,
    "foreign": _states,
    "pictures": _pictures,
    "labels": _labels,
    "classes": _classes,
}
