"""Weights files: exact round trips, and no wrong weights without a word."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxseg import weights
from jaxseg.errors import UserError
from jaxseg.weights import check_same, load_weights, save_weights

PARAMS = {
    "vit.norm.scale": np.linspace(0, 1, 5, dtype=np.float32),
    "heads.0.q": np.arange(6, dtype=np.float64).reshape(2, 3).T,  # not contiguous
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
}
SHAPES = {name: value.shape for name, value in PARAMS.items()}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, PARAMS, {"model": "segvit"})
    return path


def test_round_trip_is_exact(path):
    params, metadata = load_weights(path)
    assert metadata == {"model": "segvit"}
    assert params.keys() == PARAMS.keys()
    for name, expected in PARAMS.items():
        assert params[name].dtype == expected.dtype and params[name].shape == expected.shape
        np.testing.assert_array_equal(params[name], expected)


def test_other_programs_can_read_it(path):
    read = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(read["heads.0.q"], PARAMS["heads.0.q"])


def test_files_of_other_programs_are_taken(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    params, metadata = load_weights(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(params["a"], np.ones(3))
    assert metadata == {}


def test_any_flipped_bit_is_refused_or_harmless(path):
    """The exceptions are white space in the header and the name of the digest itself."""
    good = path.read_bytes()
    silent = 0
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        try:
            params, metadata = load_weights(path)
        except UserError:
            continue
        silent += 1
        assert metadata["model"] == "segvit"
        for name, expected in PARAMS.items():
            np.testing.assert_array_equal(params[name], expected)
    assert silent <= len(weights.DIGEST) + 8


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="weights.safetensors: not a complete safetensors file"):
        load_weights(path)


def test_other_formats_and_missing_files_are_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    with pytest.raises(UserError, match="weights.npz: not a complete safetensors file"):
        load_weights(tmp_path / "weights.npz")
    with pytest.raises(UserError, match="nothing.safetensors: no such weights file"):
        load_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="no such weights file"):
        load_weights(tmp_path)


def test_a_failed_write_leaves_the_old_file_alone(path, monkeypatch):
    good = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError):
        save_weights(path, {"a": np.ones(3)}, {})
    assert path.read_bytes() == good
    assert list(path.parent.iterdir()) == [path]


def test_check_same_accepts_equal_names_and_shapes():
    check_same(PARAMS, dict(reversed(SHAPES.items())), "a.safetensors")


def test_check_same_reports_everything_at_once():
    template = {"vit.norm.scale": (5,), "heads.0.q": (3, 4), "count": (), "new": (1,)}
    template["half"] = (2, 1)
    with pytest.raises(UserError) as error:
        check_same(PARAMS, template, "a.safetensors")
    message = str(error.value)
    assert message.startswith("a.safetensors: does not fit the model: ")
    assert "1 missing (new)" in message
    assert "1 unknown to the model (empty)" in message
    assert "2 of another shape (half (2,) instead of (2, 1), heads.0.q (3, 2) ins" in message
    assert "\n" not in message


def test_check_same_reports_a_single_extra_name():
    with pytest.raises(UserError, match=r"1 unknown to the model \(half\)"):
        check_same(PARAMS, {n: s for n, s in SHAPES.items() if n != "half"}, "a.safetensors")


def test_check_same_caps_the_list():
    with pytest.raises(UserError, match=r"20 missing \(a00, a01, a02, a03, a04, and 15 more\)"):
        check_same({}, {f"a{i:02d}": () for i in range(20)}, "x")


def heads(classes):
    shapes = {"q": (classes, 8), "embed.kernel": (8, classes + 1), "embed.bias": (classes + 1,)}
    return {"vit.kernel": (8, 8)} | {
        f"heads.{i}.{n}": s for i in range(2) for n, s in shapes.items()
    }


def test_check_same_names_the_class_counts():
    params = {name: np.zeros(shape) for name, shape in heads(11).items()}
    with pytest.raises(UserError) as error:
        check_same(params, heads(23), "a.safetensors")
    assert "the weights predict 11 classes, the config has 23" in str(error.value)


def test_check_same_does_not_blame_the_classes_for_a_width():
    params = {name: np.zeros(shape) for name, shape in heads(11).items()}
    wanted = heads(11) | {"vit.kernel": (16, 16)}
    with pytest.raises(UserError, match=r"1 of another shape \(vit.kernel \(8, 8\) instead"):
        check_same(params, wanted, "a.safetensors")
    with pytest.raises(UserError, match="1 missing"):
        check_same(params, heads(23) | {"more": ()}, "a.safetensors")
    three = {"a": (5,), "b": (6,), "c": (8,)}  # K and K + 1 are two lengths; three are no classes
    with pytest.raises(UserError, match="3 of another shape"):
        check_same(
            {name: np.zeros(shape) for name, shape in three.items()},
            {name: (shape[0] + 12,) for name, shape in three.items()},
            "a.safetensors",
        )


def test_equal_models_are_equal_files(tmp_path):
    arrays = {"a": np.arange(3.0, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    files = set()
    for i in range(12):  # safetensors alone wrote six different ones of fifty
        save_weights(tmp_path / f"{i}", arrays, {"format": "jaxseg", "x": "1", "y": "2"})
        files.add((tmp_path / f"{i}").read_bytes())
    assert len(files) == 1
    assert load_weights(tmp_path / "0")[1] == {"format": "jaxseg", "x": "1", "y": "2"}
