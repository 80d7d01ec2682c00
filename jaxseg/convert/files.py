"""Weights files of other programs as flat dicts of arrays, whatever program wrote them."""

import os
import pathlib
import zipfile

import ml_dtypes
import numpy as np

from jaxseg.convert.torch_file import read_torch, reason
from jaxseg.errors import UserError
from jaxseg.weights import load_weights

TORCH = (".pth", ".pt", ".bin", ".ckpt")
STATES = ("state_dict", "model", "module")  # mmsegmentation and timm; DeiT; DeepSpeed
WRAPPER = "module."  # of torch's DataParallel and DistributedDataParallel
MOST_COMPRESSION = 16  # of an .npz; weights themselves hardly compress
LISTED = 5  # names in an error message


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array of a .npz, .safetensors or PyTorch file (.pth, .pt, .bin, .ckpt).

    Of a PyTorch checkpoint this is the dict under "state_dict", "model" or "module", the first of
    them that there is, or else the whole; if all names begin with "module.", that is taken off.
    Arrays keep their dtype (bool, int or float; bfloat16 becomes float32) and may be read-only.

    Raises UserError if the file is missing, of another kind, damaged, without arrays, or if
    anything in the state is no array of numbers: a conversion must not lose what it cannot read.
    """
    suffix = pathlib.Path(path).suffix
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such weights file")
    if suffix == ".npz":
        state = _read_npz(path)
    elif suffix == ".safetensors":
        state = load_weights(path)[0]
    elif suffix in TORCH:
        state = _state(read_torch(path), path)
    else:
        raise UserError(f"{path}: give a .npz, a .safetensors or a {', '.join(TORCH)} file")
    state = {name: _readable(value) for name, value in state.items()}
    strange = [name for name, value in state.items() if not _is_numbers(name, value)]
    if strange:
        listed = ", ".join(f"{str(name)[:80]!r}" for name in strange[:LISTED])
        raise UserError(
            f"{path}: {len(strange)} of {len(state)} entries are no arrays of numbers ({listed}); "
            f"give a file of the weights alone, or one that has them under {' or '.join(STATES)}"
        )
    if not state:
        raise UserError(f"{path}: holds no arrays; give a file of weights")
    if all(name.startswith(WRAPPER) for name in state):
        state = {name.removeprefix(WRAPPER): value for name, value in state.items()}
    return state


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > MOST_COMPRESSION * os.path.getsize(path):
                raise ValueError(f"claims {size} bytes, too many for its own size")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        raise UserError(f"{path}: not a readable .npz ({reason(error)}); get it again") from None


def _state(tree: object, path: str | os.PathLike) -> dict:
    if isinstance(tree, dict):
        tree = next((tree[key] for key in STATES if isinstance(tree.get(key), dict)), tree)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a dict of weights")
    return tree


def _readable(value: object) -> object:
    is_bfloat16 = isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16
    return value.astype(np.float32) if is_bfloat16 else value


def _is_numbers(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
