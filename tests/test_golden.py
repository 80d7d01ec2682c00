"""Our numbers against the stored numbers of PyTorch code, and a check of the checker."""

import pathlib
import shutil

import numpy as np
import pytest
from verify_fixture import tolerances, verify

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHARED = pathlib.Path(__file__).parents[1].parent / "shared" / "fixtures"
FAMILIES = ("F1", "F2", "F3", "F4", "F5", "F6", "F7")
WHOLE = ("F2", "F6", "F8")  # golden files that hold a part of the reference
SMALL = GOLDEN / "F4_heads.npz"


def only(folder, family):
    (path,) = folder.glob(f"{family}_*.npz")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_golden(family):
    if SHARED.exists() and family in WHOLE:
        pytest.skip("the whole reference file is here: test_shared")
    lines = []
    assert verify(only(GOLDEN, family), lines.append), lines


@pytest.mark.parametrize("family", FAMILIES)
def test_every_golden_output_has_a_tolerance_and_none_is_skipped(family):
    path = only(GOLDEN, family)
    with np.load(path, allow_pickle=False) as file:
        outputs = {name for name in file.files if name.startswith("out/")}
    assert outputs and outputs == set(tolerances(path))


@pytest.mark.skipif(not SHARED.exists(), reason="the whole reference files are not here")
@pytest.mark.parametrize("family", WHOLE)
def test_shared(family):
    """What the golden files leave out: gradients and pixel maps of F2, SViT whole, the metrics."""
    lines = []
    assert verify(only(SHARED, family), lines.append), lines


# --- the checker can fail


@pytest.fixture
def changed(tmp_path):
    """A function that writes the small golden file with some arrays changed."""
    shutil.copy(GOLDEN / "INDEX.tsv", tmp_path)

    def write(name=SMALL.name, **arrays):
        with np.load(SMALL, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
        np.savez(tmp_path / name, **(data | arrays))
        return tmp_path / name

    write.data = lambda key: np.load(SMALL, allow_pickle=False)[key]
    return write


def lines_of(path, expected):
    lines = []
    assert verify(path, lines.append) is expected, lines
    return lines


def test_an_unchanged_copy_passes(changed):
    assert lines_of(changed(), True)[-1].startswith("OK: 15 of 15")


def test_one_perturbed_weight_fails(changed):
    key = "weights/fcn/conv_seg.bias"
    bias = changed.data(key)
    bias[0] += 0.001
    lines = lines_of(changed(**{key: bias}), False)
    failed = [line for line in lines if line.startswith("FAILED: out/")]
    assert failed and all(line.startswith("FAILED: out/fcn/") for line in failed)


def test_a_transposed_map_fails(changed):
    key = "out/fcn/head_logits"
    lines = lines_of(changed(**{key: changed.data(key).swapaxes(1, 2)}), False)
    assert any("out/fcn/head_logits: shape" in line for line in lines)


def test_an_output_that_nobody_compares_fails(changed):
    lines = lines_of(changed(**{"out/fcn/new": np.zeros(3)}), False)
    assert "FAILED: out/fcn/new: not compared" in lines


def test_a_nan_fails(changed):
    key = "out/fcn/head_logits"
    theirs = changed.data(key)
    theirs[0, 0, 0, 0] = np.nan
    lines_of(changed(**{key: theirs}), False)


def test_a_wrong_argmax_fails_unless_it_is_a_near_tie(changed):
    key = "out/setr_naive/argmax_fullres"
    theirs = changed.data(key)
    theirs[0, :8, :8] = (theirs[0, :8, :8] + 1) % 7
    lines = lines_of(changed(**{key: theirs}), False)
    assert any(line.startswith(f"FAILED: {key}: error") for line in lines)


def test_an_unknown_family_is_named(changed):
    (line,) = lines_of(changed("F0_other.npz"), True)
    assert line.startswith("SKIPPED: F0_other.npz: not built yet: 15 outputs")


def test_a_file_the_index_does_not_name_gets_the_tolerances_of_its_family(changed):
    path = changed("F4_other.npz")
    assert tolerances(path) == tolerances(SMALL)
    (path.parent / "INDEX.tsv").unlink()
    assert tolerances(path) == tolerances(SMALL)
