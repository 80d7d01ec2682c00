"""Faults from outside during a run: signals, kills, full disks, second runs, changed settings.

docs/reliability.md lists all faults with the tests that hold them; most are elsewhere.
"""

import contextlib
import errno
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxseg
import train
from jaxseg import checkpoint, training
from jaxseg.checkpoint import Checkpoints
from jaxseg.data.pipeline import train_batches
from jaxseg.data.shapes import shapes
from jaxseg.errors import UserError
from jaxseg.run_lock import run_lock
from jaxseg.weights import digest, load_weights

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 4
evaluation = importlib.import_module("eval")


@pytest.fixture(autouse=True)
def _usual_signals():
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)


def smoke(**changes):
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    config.train.steps = STEPS
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(smoke(), str(folder), "test")
    return folder


def assert_same_weights(ours, theirs):
    """Every name, shape and bit; the order of the file's header is safetensors' own business."""
    mine, other = (load_weights(folder / "model.safetensors") for folder in (ours, theirs))
    assert digest(*mine) == digest(*other)


def on_save(monkeypatch, step, action):
    """Call ``action`` in the main thread when that step is about to be saved."""
    save = Checkpoints.save

    def wrapped(self, done, *args):
        if done == step:
            action()
        save(self, done, *args)

    monkeypatch.setattr(Checkpoints, "save", wrapped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_checkpoint(whole, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        on_save(patch, 1, lambda: os.kill(os.getpid(), number))
        with pytest.raises(UserError, match="Ctrl-C or SIGTERM after step 2; .*resume=True"):
            train.train(smoke(), str(tmp_path), "test")
    train.train(smoke(resume=True, **{"data.workers": 1}), str(tmp_path), "test")
    assert_same_weights(tmp_path, whole)


def test_the_second_signal_ends_it_at_once_and_what_was_saved_stays(whole, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        on_save(patch, 3, twice)
        with pytest.raises(KeyboardInterrupt):
            train.train(smoke(), str(tmp_path), "test")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 2
    train.train(smoke(resume=True), str(tmp_path), "test")
    assert_same_weights(tmp_path, whole)


def test_the_loop_is_one_step_ahead_of_the_devices_at_most():
    """Or a stop would wait for all steps since the last line of the log."""
    finished, behind = [], []

    def work(_):
        time.sleep(0.02)
        finished.append(True)
        return np.float32(0)

    def step(state, batch, key):
        done = jax.pure_callback(work, jax.ShapeDtypeStruct((), np.float32), state["step"])
        return state | {"step": state["step"] + 1}, {"loss": done, "bad_steps": done}

    def stop():
        behind.append(len(behind) + 1 - len(finished) // jax.local_device_count())
        return False

    spec = training.TrainSpec(0, 8, 1, 0.0, False, 100, 0, 100, 20)
    empty = {name: {} for name in ("params", "stats", "ema")}
    state = {"step": np.zeros((), np.int32)} | empty
    batches = iter([{"x": np.zeros(jax.local_device_count(), np.float32)}] * 8)
    hooks = training.Hooks(lambda *_: None, lambda *_: None, lambda *_: 0.0, stop)
    training.fit(step, state, batches, spec, hooks)
    assert len(behind) == 8 and max(behind) <= 1


def test_ignored_signals_stay_ignored(monkeypatch):
    """As Ctrl-C is for what a script started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = train._watch_sigterm(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert not asked()


KILLED_WHILE_SAVING = """
import importlib, os, signal, sys
import train
from jaxseg import startup
from jaxseg.checkpoint import Checkpoints
fill = Checkpoints._fill
def killed(self, folder, step, *args):
    fill(self, folder, step, *args)
    if step == 3:
        (folder / "manifest.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints._fill = killed
startup.prepare()
config = importlib.import_module("configs.quickstart").get_config("smoke")
config.train.steps = int(sys.argv[2])
train.train(config, sys.argv[1], "killed")
"""


def test_kill_9_and_other_workers_change_no_byte(whole, tmp_path):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), str(STEPS)]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000001", "step_00000002", f"{checkpoint.SAVING}3"}
    train.train(smoke(resume=True, **{"data.workers": 1}), str(tmp_path), "test")
    assert_same_weights(tmp_path, whole)


def test_a_disk_that_fills_up_fails_the_run_and_keeps_the_last_good_step(
    whole, tmp_path, monkeypatch
):
    fill = Checkpoints._fill

    def full(self, folder, step, *args):
        fill(self, folder, step, *args)
        if step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_fill", full)
        with pytest.raises(UserError, match="step_00000003: could not be saved .*No space left"):
            train.train(smoke(), str(tmp_path), "test")
    assert not (tmp_path / "model.safetensors").exists()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000001", "step_00000002"]  # nothing left that keeps the disk full
    train.train(smoke(resume=True), str(tmp_path), "test")
    assert_same_weights(tmp_path, whole)


@contextlib.contextmanager
def no_file_above(size):
    """Writing past ``size`` bytes of a file fails in the kernel, as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_write_that_the_kernel_refuses_is_reported_and_cleaned_up(tmp_path):
    small, large = ({"a": np.arange(n, dtype=np.float32)} for n in (10, 10**6))
    large["a"][:] = np.random.default_rng(0).normal(size=10**6)  # does not compress
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small)
        checkpoints.wait()
        with no_file_above(100_000):
            checkpoints.save(2, large)
            with pytest.raises(UserError, match="step_00000002: could not be saved"):
                checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_second_run_is_refused_before_it_touches_anything(tmp_path):
    saving = tmp_path / "checkpoints" / f"{checkpoint.SAVING}5"
    saving.mkdir(parents=True)
    with run_lock(tmp_path):
        for config in (smoke(), smoke(resume=True)):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
                train.train(config, str(tmp_path), "test")
    assert saving.exists() and not (tmp_path / "metrics.jsonl").exists()


def test_a_workdir_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.run: cannot be written to"):
        train.train(smoke(), str(tmp_path / "file" / "run"), "test")


def test_a_resumed_run_says_what_changed_and_refuses_another_model(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for changes, message in [
        ({"model.head_width": 8}, "model.head_width was 16 and is 8"),
        ({"seed": 1}, "config.seed was 0 and is 1"),
        ({"data.count": (5, 2, 2)}, "config.data.train selected 4 images before and 5 now"),
        ({"train.steps": 3}, "train.steps=3, but 4 steps are done"),
    ]:
        with pytest.raises(UserError, match=message):
            train.train(smoke(resume=True, **changes), str(tmp_path), "refused")
    capsys.readouterr()
    train.train(smoke(resume=True, **{"train.log_every": 2}), str(tmp_path), "second")
    out = capsys.readouterr().out
    assert "changed: train.log_every 1 -> 2\nresume: step 4\n" in out
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(s["command"], s["step"]) for s in starts] == [("test", 0), ("second", 4)]
    assert_same_weights(tmp_path, whole)


def test_a_data_worker_that_is_killed_ends_the_run(tmp_path):
    source = shapes(4, (16, 16), seed=0)
    recipe = importlib.import_module("jaxseg.build").recipe(smoke())
    batches = train_batches(source, recipe, 2, seed=0, workers=1)
    with contextlib.closing(batches):
        next(batches)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises((RuntimeError, UserError), match="(?i)worker|process|killed|exit"):
            for _ in range(100):  # some batches were ready
                next(batches)


WITH_A_WORKER = """
import importlib, time
from jaxseg import build
from jaxseg.data.pipeline import train_batches
from jaxseg.data.shapes import shapes
if __name__ == "__main__":
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    batches = train_batches(shapes(4, (16, 16), seed=0), build.recipe(config), 2, 0, workers=1)
    next(batches)
    print("running", flush=True)
    time.sleep(100)
"""


def test_data_workers_end_with_a_trainer_that_is_killed(tmp_path):
    (tmp_path / "trainer.py").write_text(WITH_A_WORKER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "trainer.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as trainer:  # fmt: skip
        assert trainer.stdout.readline() == "running\n"
        trainer.kill()
        # Workers have inherited the pipe: it ends when the last of them has ended.
        assert trainer.communicate(timeout=60)[0] == ""


def test_evaluation_with_other_classes_is_refused(whole, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["classes"]["names"][0] = "unicorn"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="trained on unicorn, .* the classes it was trained on"):
        evaluation.evaluate(None, str(tmp_path))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_images_of_any_shape_are_answered(whole, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = jaxseg.load(whole).predict(image).labels
    assert labels.shape == size and labels.max() < 12
