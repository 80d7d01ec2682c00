"""What a PyTorch file may name: a closed table of globals, and this file's stand-ins for them.

They only make descriptions and plain values, and check all they are given. They return their
arguments where they can: a copy per call would let a small file fill the memory.
"""

import math
import re
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np


class Refused(Exception):
    """The file may be in order, but asks for more than plain data and arrays."""


class Name(str):
    """A global of the file as "module.name"; as a value it is this text and no more."""

    __slots__ = ()


@dataclass(frozen=True)
class Storage:
    """Elements ``first`` to ``first + length`` of the ``numel`` stored under ``key``."""

    key: str
    dtype: np.dtype
    numel: int
    first: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, for certain inside its bounds; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class NumpyDtype:
    """Kind and size ("f8"); BUILD brings the byte order."""

    kind: str
    order: str = "<"


@dataclass
class NumpyArray:
    """BUILD brings (version, shape, `NumpyDtype`, whether in Fortran order, bytes)."""

    state: object = None


@dataclass
class Attributes:
    """An object that is no more than them; BUILD brings their dict."""

    state: object = field(default_factory=dict)


STORAGES = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}

# mmengine's logs, which its checkpoints hold, and the methods that each of them lists
HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
METHODS = [(HISTORY, name) for name in ("min", "max", "current", "mean")]


def is_count(value: object) -> bool:
    """Whether ``value`` is an int (a bool is none) from 0 to 2**63 - 1."""
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: object) -> bool:
    """Whether ``value`` is a tuple of counts, at most 16: more axes only cost time and memory."""
    return type(value) is tuple and len(value) <= 16 and all(map(is_count, value))


def quoted(text: str) -> str:
    """Text of a file for a message: one line, printable, not long."""
    return repr(text[:80])


def numpy_array(shape, dtype, data, fortran=False) -> np.ndarray:
    """Array [*shape] over the ``data`` bytes of a `NumpyDtype`, in the machine's byte order.

    Raises ValueError if they are no such things, or not as many bytes.
    """
    if type(dtype) is not NumpyDtype or type(data) is not bytes or not is_shape(shape):
        raise ValueError("a numpy array without a type, numbers or a shape")
    written = np.dtype(dtype.order + dtype.kind)
    if math.prod(shape) * written.itemsize != len(data):
        raise ValueError(f"a numpy array {shape} of {len(data)} bytes")
    array = np.ndarray(shape, written, data, order="F" if fortran else "C")
    return array.astype(written.newbyteorder("="), copy=False)


def stored(saved_id: object) -> Storage:
    """From ("storage", class, key, device, elements) and, in the legacy format, a view or None.

    Raises Refused if it is an id of something else, ValueError or TypeError if it is damaged.
    """
    if type(saved_id) is not tuple or len(saved_id) not in (5, 6) or saved_id[0] != "storage":
        raise Refused("refers to something stored that is no array of numbers")
    _, kind, key, _, numel, *view = saved_id
    if type(kind) is not Name or kind not in STORAGES or type(key) is not str:
        raise ValueError("a storage without a type or a key")
    _, first, length = view[0] if view and view[0] is not None else (key, 0, numel)
    if not all(map(is_count, (numel, first, length))) or first + length > numel:
        raise ValueError(f"a storage {quoted(key)} of impossible size")
    return Storage(key, STORAGES[kind], numel, first, length)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    if type(storage) is not Storage or not is_count(offset):
        raise ValueError("a tensor without a storage or an offset")
    if not is_shape(shape) or not is_shape(strides) or len(shape) != len(strides):
        raise ValueError("a tensor of impossible shape or strides")
    if metadata:
        raise Refused("holds a conjugated or negated view")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.length:
        raise ValueError(f"a tensor reaches element {last} of a storage of {storage.length}")
    return Tensor(storage, offset, shape, strides)


def _encode(text, encoding):
    if encoding != "latin1":
        raise ValueError("bytes of an unknown encoding")
    return text.encode(encoding)


def _device(kind, index=None):
    if type(kind) is not str or len(kind) > 32 or not (index is None or is_count(index)):
        raise ValueError("a device of no known kind")
    return kind if index is None else f"{kind}:{index}"


def _numpy_dtype(kind, *_):
    if not re.fullmatch("[biuf][1248]", kind):
        raise Refused(f"holds numpy values of type {quoted(kind)}")
    return NumpyDtype(kind)


def _method(*of_what):
    if of_what not in METHODS:
        raise Refused("asks for the global 'builtins.getattr'")
    return ".".join(of_what)


CALLS = {
    "collections.OrderedDict": lambda: {},
    "collections.defaultdict": lambda factory=None: {},
    "collections.Counter": lambda counts: counts,
    "argparse.Namespace": Attributes,
    HISTORY: Attributes,
    "builtins.getattr": _method,
    "builtins.set": lambda items: items,
    "builtins.bytes": lambda: b"",
    "_codecs.encode": _encode,
    "torch.Size": lambda sizes: sizes,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "numpy.dtype": _numpy_dtype,
}
for _core in ("numpy.core.multiarray.", "numpy._core.multiarray."):
    CALLS[_core + "scalar"] = lambda dtype, data: numpy_array((), dtype, data).item()
    CALLS[_core + "_reconstruct"] = lambda kind, shape, code: NumpyArray()

FACTORIES = {f"builtins.{kind}" for kind in ("dict", "float", "int", "list")}  # of a defaultdict
ALLOWED = CALLS.keys() | STORAGES.keys() | FACTORIES | {"numpy.ndarray"}
