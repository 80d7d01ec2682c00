"""PyTorch files without PyTorch: what `torch.save` would write, and what it never would."""

import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxseg.convert import torch_file


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    """REDUCE of ``called`` with ``args``, then BUILD with ``state`` if there is one."""

    called: object
    args: tuple
    state: object = None


class Stored(NamedTuple):
    """A persistent id."""

    id: tuple


class Raw(NamedTuple):
    """Opcodes that leave one value."""

    code: bytes


class Writer(pickle._Pickler):
    """Writes globals that need not exist here, and calls that nobody has made."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_a_global(self, value):
        self.write(f"c{value.module}\n{value.name}\n".encode())

    def save_a_call(self, value):
        self.save(value.called)
        self.save(value.args)
        self.write(b"R")
        self.memoize(value)
        if value.state is not None:
            self.save(value.state)
            self.write(b"b")

    def save_an_id(self, value):
        self.save(value.id)
        self.write(b"Q")

    def save_raw(self, value):
        self.write(value.code)

    dispatch |= {Global: save_a_global, Call: save_a_call, Stored: save_an_id, Raw: save_raw}


def pickled(value, protocol=2):
    stream = io.BytesIO()
    Writer(stream, protocol).dump(value)
    return stream.getvalue()


KINDS = {
    "Double": np.dtype(np.float64),
    "Float": np.dtype(np.float32),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}
ORDERED = Global("collections", "OrderedDict")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


class Saved:
    """A file in the making: tensors by storage, and then the file in either format."""

    def __init__(self, view=()):
        self.storages: dict[str, tuple[int, bytes]] = {}
        self.view = view  # what the legacy format adds to an id: None, or (key, first, length)

    def storage(self, array, key=None, numel=None):
        key = str(len(self.storages)) if key is None else key
        self.storages[key] = (array.size, array.tobytes())
        kind = next(name for name, dtype in KINDS.items() if dtype == array.dtype)
        numel = array.size if numel is None else numel
        return Stored(
            ("storage", Global("torch", kind + "Storage"), key, "cuda:0", numel, *self.view)
        )

    def tensor(self, storage, offset, shape, strides):
        return Call(REBUILD, (storage, offset, shape, strides, False, Call(ORDERED, ())))

    def __call__(self, array):
        strides = tuple(s // array.itemsize for s in np.empty(array.shape, array.dtype).strides)
        return self.tensor(self.storage(array), 0, array.shape, strides)

    def zip(self, path, tree, order="little", protocol=2, folder="archive"):
        code = tree if isinstance(tree, bytes) else pickled(tree, protocol)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{folder}/data.pkl", code)
            if order:
                archive.writestr(f"{folder}/byteorder", order)
            for key, (_, data) in self.storages.items():
                archive.writestr(f"{folder}/data/{key}", data)
            archive.writestr(f"{folder}/version", "3\n")
        return path

    def legacy(self, path, tree, keys=None, protocol=2):
        code = tree if isinstance(tree, bytes) else pickled(tree, protocol)
        parts = [pickled(torch_file.LEGACY_MAGIC, protocol), pickled(1001, protocol)]
        parts += [pickled({"little_endian": True}, protocol), code]
        parts += [pickled(sorted(self.storages) if keys is None else keys, protocol)]
        for key in sorted(self.storages):
            numel, data = self.storages[key]
            parts += [struct.pack("<q", numel), data]
        path.write_bytes(b"".join(parts))
        return path

    def write(self, kind, path, tree):
        return self.zip(path, tree) if kind == "zip" else self.legacy(path, tree)
