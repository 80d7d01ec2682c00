"""Checkpoints: exact round trips, what is kept, damage of every kind, and real kills."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxseg import checkpoint
from jaxseg.checkpoint import Checkpoints
from jaxseg.errors import UserError

Moments = namedtuple("Moments", "mu nu")


@jax.tree_util.register_dataclass
@dataclass
class State:
    step: np.ndarray
    params: dict
    opt: tuple


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {"a.b": rng.normal(size=(3, 4)).astype(np.float32), "a": rng.normal(size=5)}
    params["large"] = rng.normal(size=9000).astype(np.float32)  # the largest file holds its values
    odd = np.array([np.nan, -0.0, 1e-45], np.float32)
    moments = Moments({"m": odd}, np.array([1.5], ml_dtypes.bfloat16))
    return State(np.array(2**40 + seed, np.int64), params, ((), moments))


def assert_identical(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)
        assert type(a) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def fill(directory, steps, **options):
    """Save steps (step, metric) of which each has its own state."""
    with Checkpoints(directory, **options) as checkpoints:
        for step, metric in steps:
            checkpoints.save(step, make_state(step), metric)


def restore(directory, step=None):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(make_state(99), step)


def test_round_trip_is_bit_identical(tmp_path):
    fill(tmp_path, [(7, None)])
    step, state = restore(tmp_path)
    assert step == 7
    assert_identical(state, make_state(7))


def test_restored_arrays_can_be_written(tmp_path):
    fill(tmp_path, [(7, None)])
    restore(tmp_path)[1].params["a"] += 1


def test_a_template_of_shapes_is_enough(tmp_path):
    fill(tmp_path, [(7, None)])
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), make_state())
    with Checkpoints(tmp_path) as checkpoints:
        assert_identical(checkpoints.restore(template)[1], make_state(7))


@pytest.mark.parametrize(
    "metrics, kept, best",
    [
        ([None] * 4, [3, 4], None),
        ([0.9, 0.1, 0.2, 0.3], [1, 3, 4], 1),
        ([0.1, 0.2, 0.3, 0.4], [3, 4], 4),
        ([0.5, float("nan"), float("inf"), 0.2], [1, 3, 4], 1),
        ([0.5, 0.5, None, None], [2, 3, 4], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, metrics, kept, best):
    fill(tmp_path, zip(range(1, 5), metrics, strict=True), keep=2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.best() == best
        assert checkpoints.latest() == 4
        for step in kept:
            assert_identical(checkpoints.restore(make_state(), step)[1], make_state(step))
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_saving_a_step_again_replaces_it(tmp_path):
    fill(tmp_path, [(1, 0.5), (2, 0.9)])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(5), 0.1)
        assert_identical(checkpoints.restore(make_state())[1], make_state(5))
        assert checkpoints.best() == 1


def test_an_empty_directory_has_nothing(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (None, None, [])
        with pytest.raises(UserError, match="new: no intact checkpoint"):
            checkpoints.restore(make_state())


def test_an_unknown_step_is_refused(tmp_path):
    fill(tmp_path, [(1, None), (2, None)])
    with pytest.raises(UserError, match=r"checkpoint of step 3; .* \[1, 2\]"):
        restore(tmp_path, 3)


def largest(step):
    return max(step.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def remove_all(step):
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def change_metric(step):
    path = step / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": 0.99}))


DAMAGES = {
    "bit flipped": lambda step: flip(largest(step)),
    "index flipped": lambda step: flip(step / "manifest.ocdbt"),
    "tree flipped": lambda step: flip(step / "_METADATA"),
    "data truncated": lambda step: truncate(largest(step)),
    "data removed": lambda step: largest(step).unlink(),
    "manifest truncated": lambda step: truncate(step / "manifest.json"),
    "manifest emptied": lambda step: (step / "manifest.json").write_text("[]"),
    "manifest removed": lambda step: (step / "manifest.json").unlink(),
    "metric changed": change_metric,
    "empty": remove_all,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_put_aside(tmp_path, capsys, damage):
    fill(tmp_path, [(1, 0.2), (2, 0.1)])
    DAMAGES[damage](tmp_path / "step_00000002")
    step, state = restore(tmp_path)
    assert step == 1
    assert_identical(state, make_state(1))
    out = capsys.readouterr().out
    assert "checkpoint of step 2 is damaged" in out and out.count("\n") == 1
    assert (tmp_path / "damaged_step_00000002").exists()
    fill(tmp_path, [(2, None)])  # training gets there again
    assert_identical(restore(tmp_path)[1], make_state(2))


def signed(step, **changes):
    """Another manifest, whose own digest is right."""
    content = json.loads((step / "manifest.json").read_text()) | changes
    del content["sha256"]
    content = {name: value for name, value in content.items() if value != "gone"}
    content["sha256"] = checkpoint.digest({}, content)
    (step / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"files": "gone"},
            {"files": []},
            {"files": ["a"]},
            {"files": {"d": ""}},
            {"files": None},
        ),
        *({"files": {name: ""}} for name in ("", ".", "../x", "/etc/passwd", "a\x1b[2J", "\ud800")),
        *({"files": {name: ""}} for name in ("x" * 300, "manifest.json/a", "\0")),
        *({"metric": "gone"}, {"metric": "0.9"}, {"metric": [1]}, {"metric": float("nan")}),
        {"metric": float("inf")},
    ],
    ids=repr,
)
def test_a_manifest_of_another_form_is_damage_whatever_its_digest(tmp_path, capsys, changes):
    fill(tmp_path, [(1, 0.2), (2, 0.1)])
    (tmp_path / "step_00000002" / "d").mkdir(exist_ok=True)
    signed(tmp_path / "step_00000002", **changes)
    assert [bool(health.damage) for health in checkpoint.inspect(tmp_path)] == [False, True]
    with Checkpoints(tmp_path) as checkpoints:
        if "files" not in changes:
            assert checkpoints.best() == 1
        assert checkpoints.restore(make_state())[0] == 1
    assert capsys.readouterr().out.rstrip("\n").isprintable()


@pytest.mark.parametrize("content", ["[" * 100_000, '"text"', "7", '{"sha256": 1}'])
def test_a_manifest_that_is_none_is_damage(tmp_path, content):
    fill(tmp_path, [(1, None), (2, None)])
    (tmp_path / "step_00000002" / "manifest.json").write_text(content)
    assert restore(tmp_path)[0] == 1


def test_files_that_orbax_cannot_read_in_spite_of_their_digests(tmp_path):
    fill(tmp_path, [(1, None), (2, None)])
    step = tmp_path / "step_00000002"
    (step / "_METADATA").write_text("{}")
    files = json.loads((step / "manifest.json").read_text())["files"]
    signed(step, files=files | {"_METADATA": checkpoint._sha256(step / "_METADATA")})
    with pytest.raises(UserError, match="step_00000002: cannot be read .*; remove this folder"):
        restore(tmp_path)
    assert step.exists()


def test_the_same_step_damaged_twice(tmp_path):
    for _ in range(2):
        fill(tmp_path, [(1, None), (2, None)])
        flip(largest(tmp_path / "step_00000002"))
        assert restore(tmp_path)[0] == 1
    assert (tmp_path / "damaged_step_00000002_2").exists()


def test_only_damaged_steps_are_an_error_not_a_fresh_start(tmp_path):
    fill(tmp_path, [(1, None)])
    flip(largest(tmp_path / "step_00000001"))
    with pytest.raises(UserError, match="no intact checkpoint"):
        restore(tmp_path)


def test_a_damaged_step_that_was_asked_for_is_an_error(tmp_path):
    fill(tmp_path, [(1, None), (2, None)])
    flip(largest(tmp_path / "step_00000002"))
    with pytest.raises(UserError, match=r"no intact checkpoint of step 2; .* \[1\]"):
        restore(tmp_path, 2)


def test_a_lack_of_rights_is_not_damage(tmp_path, monkeypatch):
    fill(tmp_path, [(1, None)])

    def refuse(*args):
        raise PermissionError("not yours")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoint, "_sha256", refuse)
        with pytest.raises(PermissionError):
            checkpoints.restore(make_state())
    assert (tmp_path / "step_00000001").exists()


def test_another_structure_is_summarised_and_nothing_put_aside(tmp_path):
    fill(tmp_path, [(1, None)])
    template = make_state()
    template.params |= {"a.b": np.zeros((3, 9), np.float32), "new": np.zeros(5)}
    del template.params["a"]
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(template)
        assert checkpoints.steps() == [1]
    message = str(error.value)
    assert "step_00000001: does not fit" in message
    assert "1 missing (params/new)" in message
    assert "1 unknown to the model (params/a)" in message
    assert "params/a.b (3, 4) instead of (3, 9)" in message


def test_another_dtype_is_refused(tmp_path):
    fill(tmp_path, [(1, None)])
    template = make_state()
    template.params["a"] = template.params["a"].astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="params/a is float64 instead of float32"):
            checkpoints.restore(template)


def test_a_full_disk_is_refused_before_anything_is_lost(tmp_path, monkeypatch):
    fill(tmp_path, [(1, None)])
    usage = namedtuple("Usage", "free")(100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="0.00 GB free"):
            checkpoints.save(1, make_state(2))
    assert_identical(restore(tmp_path)[1], make_state(1))


def test_a_save_that_fails_in_the_background_is_reported(tmp_path, monkeypatch):
    fill(tmp_path, [(1, None)])
    with Checkpoints(tmp_path) as checkpoints:

        def fail(*args):
            raise ValueError("RESOURCE_EXHAUSTED: disk\nmore")

        monkeypatch.setattr(checkpoints._orbax, "save", fail)
        checkpoints.save(2, make_state(2))
        with pytest.raises(UserError, match=r"step_00000002: could not be saved .*disk\); check"):
            checkpoints.wait()
    assert_identical(restore(tmp_path)[1], make_state(1))


SAVE_FOR_EVER = """
import sys
import numpy as np
from jaxseg.checkpoint import Checkpoints

with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    start = checkpoints.latest() or 0
    for step in range(start + 1, 10_000):
        state = {str(i): np.full(500_000 + i, step + i, np.float32) for i in range(4)}
        checkpoints.save(step, state, metric=step % 3)
        print(checkpoints.steps(), flush=True)
"""


def test_kill_at_any_moment_loses_at_most_the_running_save(tmp_path, capsys):
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
    for delay in (0.0, 0.013):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(4):
                committed = json.loads(process.stdout.readline())
            while not any(path.name.startswith(".saving") for path in tmp_path.iterdir()):
                assert process.poll() is None
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        with Checkpoints(tmp_path) as checkpoints:
            names = [path.name for path in tmp_path.iterdir()]
            assert all(name.startswith("step_") for name in names), names
            template = {str(i): np.zeros(500_000 + i, np.float32) for i in range(4)}
            for step in checkpoints.steps():
                state = checkpoints.restore(template, step)[1]
                assert all((state[str(i)] == step + i).all() for i in range(4))
            assert checkpoints.restore(template)[0] >= committed[-1]
        assert "damaged" not in capsys.readouterr().out
