"""Weights files of any program as flat dicts: the state inside, and clear refusals."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Global, Saved

from jaxseg.convert.files import read_arrays
from jaxseg.errors import UserError

STATE = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.num_batches_tracked": np.array(7),
    "half": np.array([1, 2], np.float16),
    "mask": np.array([True, False]),
}


def same(found, expected=STATE):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def refusal(path):
    with pytest.raises(UserError) as error:
        read_arrays(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 900
    return message


@pytest.fixture
def written(tmp_path):
    """Writes a tree whose arrays become tensors, as torch.save would."""

    def write(tree, name="model.pth"):
        saved = Saved()

        def stored(value):
            if isinstance(value, dict):
                return {key: stored(part) for key, part in value.items()}
            return saved(value) if isinstance(value, np.ndarray) else value

        return saved.zip(tmp_path / name, stored(tree))

    return write


def test_every_format_gives_the_same(written, tmp_path):
    np.savez(tmp_path / "a.npz", **STATE)
    np.savez_compressed(tmp_path / "b.npz", **STATE)
    safetensors.numpy.save_file(STATE, tmp_path / "c.safetensors")
    same(read_arrays(tmp_path / "a.npz"))
    same(read_arrays(str(tmp_path / "b.npz")))
    found = read_arrays(tmp_path / "c.safetensors")  # in the order of its header
    same({name: found[name] for name in STATE})
    assert len(found) == len(STATE)
    for suffix in ("pth", "pt", "bin", "ckpt"):
        same(read_arrays(written(STATE, f"d.{suffix}")))


def test_bfloat16_becomes_float32(written, tmp_path):
    halves = {"a": np.array([1.5, -2], ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(halves, tmp_path / "a.safetensors")
    expected = {"a": np.array([1.5, -2], np.float32)}
    same(read_arrays(tmp_path / "a.safetensors"), expected)
    same(read_arrays(written(halves)), expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_the_state_of_a_checkpoint_is_found(written, key):
    rest = {"meta": {"epoch": 3}, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}}
    same(read_arrays(written(rest | {key: STATE})))


def test_the_first_known_state_is_taken(written):
    other = {"other": np.ones(2)}
    same(read_arrays(written({"module": other, "model": other, "state_dict": STATE})))
    same(read_arrays(written({"module": other, "model": STATE, "state_dict": None})))


def test_arrays_may_be_called_like_a_state(written):
    state = {"model": np.ones(2), "state_dict": np.ones(3)}
    same(read_arrays(written(state)), state)


def test_the_wrapper_is_taken_off_all_names_or_none(written):
    wrapped = {f"module.{name}": array for name, array in STATE.items()}
    same(read_arrays(written(wrapped)))
    same(read_arrays(written({"state_dict": wrapped})))
    mixed = wrapped | {"modules": np.ones(1)}
    same(read_arrays(written(mixed)), mixed)
    twice = {"module.module.a": np.ones(1)}
    same(read_arrays(written(twice)), {"module.a": np.ones(1)})


def test_states_with_anything_else_are_refused(written):
    message = refusal(written({"state_dict": STATE | {"epoch": 3, 5: np.ones(2), "x": None}}))
    assert "3 of 7 entries are no arrays of numbers ('epoch', '5', 'x'); give a file" in message
    assert message.endswith("under state_dict or model or module")
    message = refusal(written({"epoch": 3, "student": STATE, "teacher": STATE}))
    assert "('epoch', 'student', 'teacher')" in message
    message = refusal(written({f"a\n{i}" * 99: i for i in range(9)}))
    assert message.count("\\n") < 200 and "9 of 9" in message


def test_files_without_arrays_are_refused(written, tmp_path):
    np.savez(tmp_path / "a.npz")
    safetensors.numpy.save_file({}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.npz", tmp_path / "a.safetensors", written({"model": {}})):
        assert "holds no arrays; give a file of weights" in refusal(path)
    assert "holds a list, not a dict of weights" in refusal(written([1, 2]))
    assert "holds a ndarray, not a dict of weights" in refusal(written(np.ones(2)))


def test_other_paths_are_refused(tmp_path):
    for name in ("a.npz", "a.pth", "a.safetensors", "a.txt"):
        assert "no such weights file" in refusal(tmp_path / name)
    (tmp_path / "folder.pth").mkdir()
    assert "no such weights file" in refusal(tmp_path / "folder.pth")
    for name in ("a.txt", "model", "a.pkl", "a.npy"):
        (tmp_path / name).write_bytes(b"x")
        expected = "give a .npz, a .safetensors or a .pth, .pt, .bin, .ckpt file"
        assert refusal(tmp_path / name) == f"{tmp_path / name}: {expected}"


def test_nothing_is_executed(tmp_path):
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return __import__("os").mkdir, (str(mark),)

    np.savez(tmp_path / "a.npz", a=np.array([Evil()], object))
    assert "not a readable .npz" in refusal(tmp_path / "a.npz")
    evil = Call(Global("os", "mkdir"), (str(mark),))
    assert "'os.mkdir'" in refusal(Saved().zip(tmp_path / "a.pth", {"model": evil}))
    assert "'os.mkdir'" in refusal(Saved((None,)).legacy(tmp_path / "a.pth", {"model": evil}))
    assert not mark.exists()


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.zeros(2, "V2"), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]")]
)
def test_arrays_of_other_things_are_refused(array, tmp_path):
    np.savez(tmp_path / "a.npz", good=np.ones(2), bad=array)
    assert "1 of 2 entries are no arrays of numbers ('bad')" in refusal(tmp_path / "a.npz")


def test_archives_of_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "('readme.txt')" in refusal(tmp_path / "a.npz")


def test_an_npz_larger_than_it_looks_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    assert "claims 80001" in refusal(tmp_path / "a.npz")


def test_an_npz_that_claims_a_huge_array_is_refused(tmp_path):
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**18,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", stream.getvalue() + bytes(100))
    assert "not a readable .npz" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_files_are_read_or_refused(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    if suffix == "npz":
        np.savez(path, **STATE)
    elif suffix == "safetensors":
        safetensors.numpy.save_file(STATE, path)
    else:
        saved = Saved()
        saved.zip(path, {"model": {name: saved(array) for name, array in STATE.items()}})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 9, len(content)))])
    try:
        read_arrays(path)
    except UserError:
        refusal(path)
