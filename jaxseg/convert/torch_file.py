"""PyTorch files (`torch.save`) without PyTorch, and without running anything they ask for.

Both formats: the zip archive of torch 1.6 and later (NAME/data.pkl, NAME/byteorder, a record
NAME/data/KEY per storage) and the older chain of pickles with the storages behind them. The first
has a checksum per record, which is checked; a flipped bit in the numbers of the second goes unseen.
"""

import io
import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np

from jaxseg.convert.torch_globals import (
    Attributes,
    NumpyArray,
    Refused,
    Storage,
    Tensor,
    numpy_array,
    quoted,
)
from jaxseg.convert.torch_pickle import unpickle
from jaxseg.errors import UserError

ZIP_HEAD = b"PK\3\4"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
DEEPEST = 100  # containers inside each other; whoever walks the result may recurse
# Views may overlap (tied weights, expanded buffers), but a small file must not stand for a huge
# state: all arrays together have at most so many times the bytes of the file.
MOST_SHARING = 16

Bytes = Callable[[Storage], bytes | memoryview]


def read_torch(path: str | os.PathLike) -> object:
    """What ``torch.save`` wrote: dicts, lists, tuples, str, bytes, numbers, bools, None, arrays.

    Tensors and parameters become numpy arrays of their dtype (bfloat16: float32), in the machine's
    byte order and possibly read-only views of each other. Other harmless things become the nearest
    plain value: OrderedDict, defaultdict, Counter, argparse.Namespace and the HistoryBuffers of
    mmengine a dict, a set a list, torch.Size a tuple, torch.device a str, numpy scalars numbers.
    What hangs on a state dict (``_metadata``) is dropped.

    Raises UserError if the file cannot be read, is damaged, holds less than it claims, nests more
    than 100 deep, or names any other global (see `torch_globals`): nothing of it is executed.
    """
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            head = stream.read(32)
            stream.seek(0)
            if head.startswith(ZIP_HEAD):
                return _read_zip(stream, size)
            if LEGACY_MAGIC.to_bytes(10, "little") in head:
                stream.raw.seek(0)  # what is buffered would make read() hold everything twice
                return _read_legacy(stream.raw.readall())
        raise ValueError("it begins like no file of torch.save")
    except Refused as error:
        raise UserError(
            f"{path}: {error}; only arrays and plain values are read: save its state dict alone "
            f"with torch.save, or as .safetensors"
        ) from None
    except Exception as error:  # whatever numbers a damaged file makes zipfile and numpy meet
        raise UserError(
            f"{path}: not a readable PyTorch file ({reason(error)}); get it again"
        ) from None


def reason(error: Exception) -> str:
    """What a library's exception says, or its name: printable, in one line, not long."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)


def _read_zip(stream, size: int) -> object:
    with zipfile.ZipFile(stream) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise ValueError("its records are compressed, which torch.save never does")
        if sum(info.file_size for info in records.values()) > size:
            raise ValueError("its records overlap")
        folder = next(iter(records), "").split("/")[0]

        def record(name):
            if f"{folder}/{name}" not in records:
                raise ValueError(f"no record {quoted(name)}")
            return archive.read(f"{folder}/{name}")

        order = record("byteorder") if f"{folder}/byteorder" in records else b"little"
        if order not in (b"little", b"big"):
            raise ValueError("an unknown byte order")

        def data(storage):
            data = record(f"data/{storage.key}")
            if order != sys.byteorder.encode():
                data = np.frombuffer(data, f"u{storage.dtype.itemsize}").byteswap().tobytes()
            return data

        tree, _ = unpickle(io.BytesIO(record("data.pkl")))
        return _Arrays(data, size).fill(tree)


def _read_legacy(content: bytes) -> object:
    stream = io.BytesIO(content)
    magic, protocol = unpickle(stream)[0], unpickle(stream)[0]
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError("unknown version of the format")
    unpickle(stream)  # type sizes of the machine that wrote it; numbers are always little-endian
    tree, storages = unpickle(stream)
    keys, _ = unpickle(stream)
    position, found = stream.tell(), {}
    for key in keys:
        if type(key) is not str or key not in storages:
            raise ValueError("a storage that no tensor names")
        (numel,) = struct.unpack_from("<q", content, position)
        if numel != storages[key].numel:
            raise ValueError(
                f"storage {quoted(key)} has {numel} elements, not what its tensors say"
            )
        begin, position = position + 8, position + 8 + numel * storages[key].dtype.itemsize
        found[key] = memoryview(content)[begin:position]

    def data(storage):
        if storage.key not in found:
            raise ValueError(f"no storage {quoted(storage.key)}")
        return found[storage.key]

    return _Arrays(data, len(content)).fill(tree)


class _Arrays:
    """Puts arrays for the descriptions in a tree of `torch_pickle`, each container once.

    ``data`` gives the bytes of a storage; ``size`` is that of the file.
    """

    def __init__(self, data: Bytes, size: int):
        self.data, self.room = data, MOST_SHARING * size
        self.storages: dict[str, bytes | memoryview] = {}
        self.done: dict[int, tuple[object, int]] = {}  # id -> (value, containers inside each other)

    def fill(self, value: object) -> object:
        return self._fill(value, DEEPEST)[0]

    def _fill(self, value, left: int) -> tuple[object, int]:
        if value is None or isinstance(value, bytes | bool | int | float):
            return value, 0
        if isinstance(value, str):
            return str(value), 0  # a `Name` becomes its text
        if id(value) not in self.done:
            if left == 0:
                raise Refused(f"nests more than {DEEPEST} deep")
            self.done[id(value)] = self._new(value, left - 1)
        new, height = self.done[id(value)]
        if height > left:
            raise Refused(f"nests more than {DEEPEST} deep")
        return new, height

    def _new(self, value, left: int) -> tuple[object, int]:
        if isinstance(value, Tensor):
            return self._tensor(value), 1
        if isinstance(value, NumpyArray):
            _, shape, dtype, fortran, data = value.state
            self._claim(len(data))
            return numpy_array(shape, dtype, data, fortran), 1
        if isinstance(value, Attributes):
            return self._fill(value.state, left)
        if not isinstance(value, dict | list | tuple):
            raise Refused(f"holds a {type(value).__name__} by itself")
        parts = value.values() if isinstance(value, dict) else value
        filled = [self._fill(part, left) for part in parts]
        inside = [new for new, _ in filled]
        new = dict(zip(value, inside, strict=True)) if type(value) is dict else type(value)(inside)
        return new, 1 + max((height for _, height in filled), default=0)

    def _tensor(self, tensor: Tensor) -> np.ndarray:
        storage, dtype = tensor.storage, tensor.storage.dtype
        readable = np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, readable)
        self._claim(math.prod(tensor.shape) * readable.itemsize)
        array = np.ndarray(
            tensor.shape,
            dtype,
            self._stored(storage),
            (storage.first + tensor.offset) * dtype.itemsize,
            [stride * dtype.itemsize for stride in tensor.strides],
        )
        return array.astype(readable, copy=False)

    def _stored(self, storage: Storage) -> bytes | memoryview:
        if storage.key not in self.storages:
            data = self.data(storage)
            if len(data) != storage.numel * storage.dtype.itemsize:
                raise ValueError(
                    f"storage {quoted(storage.key)} has {len(data)} bytes instead of "
                    f"{storage.numel * storage.dtype.itemsize}"
                )
            self.storages[storage.key] = data
        return self.storages[storage.key]

    def _claim(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise Refused(f"claims arrays of more than {MOST_SHARING} times its own size")
