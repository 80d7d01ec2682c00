"""Several processes train and evaluate as one does, and end together (two, two devices each)."""

import importlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxseg import checkpoint, peers, processes
from jaxseg.errors import UserError
from jaxseg.run_lock import run_lock
from jaxseg.weights import load_weights

ROOT = pathlib.Path(__file__).parents[1]
FILES = {"results.json", "confusion.png", "report.html"}
# One process imports everything and forks the others: importing takes longer than these runs.
STARTER = """
import importlib, json, os, runpy, sys, time
import jax
from jax._src import distributed
import eval, train
from jaxseg import training
from jaxseg.checkpoint import Checkpoints
for name in ("build", "data.pipeline", "model_dir", "report", "resume", "startup", "tasks", "viz"):
    importlib.import_module(f"jaxseg.{name}")

def signalled_at(step, number):
    target, name = (training, "fit") if step == 0 else (Checkpoints, "save")
    usual = getattr(target, name)
    def wrapped(*args):
        if step == 0 or args[1] == step:
            os.kill(os.getpid(), number)
            time.sleep(3)  # jax looks once a second whether SIGTERM has come
        return usual(*args)
    setattr(target, name, wrapped)

def initialize(*args, **given):
    usual_initialize(*args, **given)
    jax.devices()
    # On CPUs every process has programs of its own, but only process 0 would keep them.
    distributed.global_state.process_id = 0

usual_initialize, jax.distributed.initialize = jax.distributed.initialize, initialize

def run(output, devices, at, argv):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    if at:
        signalled_at(*at)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")

for line in sys.stdin:
    children = []
    for asked in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            run(**asked)
            sys.exit()
    print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
"""


class Ended(NamedTuple):
    """How a process ended: exit code (negative: a signal) and what it printed."""

    code: int
    output: str

    @property
    def errors(self):
        """Lines that are not jax's own."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """``start(argv, processes, devices, at)`` runs processes to their end: a list of `Ended`.

    at: (step, signal) that hits the last process when that step is about to be saved (0: before
    the first step).
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as starter:

        def start(argv, processes=2, devices=2, at=None):
            outputs = [tmp_path_factory.mktemp("output") / "log" for _ in range(processes)]
            asked = []
            port = free_port()
            for i, output in enumerate(outputs):
                several = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
                several += [f"--process_id={i}"]
                asked.append(
                    {
                        "output": str(output),
                        "devices": devices,
                        "at": at if i == processes - 1 else None,
                        "argv": argv + several * (processes > 1),
                    }
                )
            starter.stdin.write(json.dumps(asked) + "\n")
            starter.stdin.flush()
            codes = map(os.waitstatus_to_exitcode, json.loads(starter.stdout.readline()))
            return [Ended(code, o.read_text()) for code, o in zip(codes, outputs, strict=True)]

        yield start
        starter.stdin.close()


def free_port():
    """The next one is free, too."""
    while True:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
            if port < 65535:
                try:
                    socket.create_server(("", port + 1)).close()
                    return port
                except OSError:
                    continue


def training(workdir, **changes):
    """Its command line. Drop path, so that keys matter; SGD, which does not magnify rounding."""
    fields = {"train.steps": 5, "train.batch_size": 4, "train.eval_every": 4}
    fields |= {"model.drop_path": 0.5, "optim.name": "sgd", "optim.lr": 0.1}
    fields |= {
        "model.taps": "(2,)",
        "data.count": "(4, 3, 3)",
    } | changes  # one head: less to compile
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["train.py", "--config=configs/quickstart.py:smoke", f"--workdir={workdir}", *flags]


def weights(workdir):
    return load_weights(workdir / "model.safetensors")


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The workdir of one process with as many devices."""
    folder = tmp_path_factory.mktemp("alone")
    (ended,) = start(training(folder), processes=1, devices=4)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def history(start, tmp_path_factory):
    """The workdir of two processes that were started three times, and how they ended."""
    folder = tmp_path_factory.mktemp("history")
    stopped = start(training(folder), at=(0, signal.SIGTERM))
    killed = start(training(folder, resume=True), at=(3, signal.SIGKILL))
    assert not (folder / "model.safetensors").exists(), killed
    return folder, stopped, killed, start(training(folder, resume=True))


def test_sigterm_to_one_ends_all_after_a_checkpoint_of_the_same_step(history):
    stopped = history[1]
    assert [ended.code for ended in stopped] == [2, 2], stopped
    lines = [ended.errors for ended in stopped]
    assert len(lines[0]) == 1 and lines[0] == lines[1]
    step = int(re.search(r"SIGTERM after step (\d); go on with --config.resume", lines[0][0])[1])
    assert step < 3 and f"resume: step {step}\n" in history[2][0].output


def test_a_killed_process_ends_the_others_with_one_line(history):
    killed = history[2]
    assert [ended.code for ended in killed] == [2, -signal.SIGKILL], killed
    (line,) = killed[0].errors
    assert "process 1 on" in line and "has died" in line and "--config.resume=True" in line
    assert killed[0].output.endswith(line + "\n")  # no stack trace after it


def test_together_and_interrupted_they_train_as_one_does_alone(history, alone):
    folder, *_, ended = history
    assert [each.code for each in ended] == [0, 0], ended
    ours, theirs = (load_weights(f / "model.safetensors")[0] for f in (folder, alone))
    assert ours.keys() == theirs.keys()
    # Between processes the sum over four devices is added up in another order.
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=2e-6, rtol=0, err_msg=name)
    texts = [(each / "metrics.jsonl").read_text() for each in (folder, alone)]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 4, 5, 5]  # each once
    for mine, other in zip(*logs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5), mine["step"]


def test_one_process_writes_and_talks(history):
    folder, *_, (first, second) = history
    assert "wrote" in first.output and "data: " in first.output
    assert not any(word in second.output for word in ("data: ", "wrote", "train", "validat"))
    assert len((folder / "starts.jsonl").read_text().splitlines()) == 3
    assert json.loads((folder / "run.json").read_text())["processes"] == 2
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"step_00000004", "step_00000005"} == names  # nothing half written


def test_an_error_of_one_is_said_by_all(start, history):
    """The folder is taken: process 0 notices, process 1 would wait for it."""
    with run_lock(history[0]):
        ended = start(training(history[0], resume=True))
    assert [each.code for each in ended] == [2, 2]
    assert all(len(each.errors) == 1 and "in use by" in each.output for each in ended), ended


def test_two_processes_evaluate_as_one(start, alone, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    ended = start(["eval.py", f"--workdir={alone}", f"--out={folders[1]}"])
    assert [each.code for each in ended] == [0, 0], ended
    assert "wrote" in ended[0].output and "wrote" not in ended[1].output
    importlib.import_module("eval").evaluate(None, str(alone), str(folders[0]))
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert ours["confusion"] == theirs["confusion"] and ours["images"] == 3
    assert [{path.name for path in folder.iterdir()} for folder in folders] == [FILES, FILES]


def test_processes_that_see_different_folders_are_refused(tmp_path, monkeypatch):
    """As process 0 of two, of which the other one does not see what this one makes."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoint, "gather", lambda it: [it, False if it is True else it])
    with pytest.raises(UserError, match="process 1 does not see what process 0 writes .* share"):
        checkpoint.Checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def meet_all(port, *flags):
    """What `peers.meet` gives or raises for each (count, index), called at the same time."""
    found = [None] * len(flags)

    def call(i, count, index):
        try:
            found[i] = peers.meet("localhost", port, count, index)
        except UserError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=call, args=(i, *flag)) for i, flag in enumerate(flags)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def close(*groups):
    for peer in (peer for group in groups if isinstance(group, list) for peer in group):
        peer.close()


def test_processes_meet_and_hear_each_other():
    first, second, third = meet_all(free_port(), (3, 0), (3, 1), (3, 2))
    assert sorted(peer.name.split(" on ")[0] for peer in first) == ["process 1", "process 2"]
    second[0].say("two\nlines")
    close(third)
    heard = {peer.name[:9]: peer.hear() for peer in first}
    assert heard == {"process 1": "two lines", "process 2": ""}
    close(first, second)


def test_whoever_looks_for_open_ports_is_sent_away():
    port, first = free_port(), []
    waiting = threading.Thread(target=lambda: first.extend(peers.meet("localhost", port, 2, 0)))
    waiting.start()
    stranger = []
    with pytest.raises(UserError, match="process 0 has gone"):
        peers._call(stranger, "localhost", port, "GET / HTTP/1.1")
    second = peers.meet("localhost", port, 2, 1)
    waiting.join()
    assert len(first) == len(second) == 1
    close(first, second, stranger)


def test_processes_that_do_not_fit_are_refused(monkeypatch):
    found = meet_all(free_port(), (2, 0), (3, 1))
    assert set(found) == {found[0]} and "--num_processes=3, but process 0 has 2" in found[0]
    found = meet_all(free_port(), (3, 0), (3, 1), (3, 1))
    assert set(found) == {found[0]} and "another one has come with --process_id=1" in found[0]
    monkeypatch.setattr(peers, "ARRIVE", 0.3)
    port = free_port()
    (found,) = meet_all(port, (3, 0))
    assert f"process 1, 2 did not come to port {port}" in found
    (found,) = meet_all(port, (2, 1))
    assert f"localhost:{port}: process 0 did not answer" in found
    with socket.create_server(("", port + 1)):
        (found,) = meet_all(port, (2, 0))
    assert f"port {port} or {port + 1}: " in found and "name another" in found


@pytest.mark.parametrize(
    "flags, message",
    [
        ((None, 2, None), "go with --coordinator=HOST:PORT"),
        (("auto", None, 1), "go with --coordinator=HOST:PORT"),
        (("auto", None, None), "jax cannot start .*; name --coordinator=HOST:PORT"),
        (("host", 2, 0), "--coordinator=host: give HOST:PORT"),
        (("host:port", 2, 0), "--coordinator=host:port: give HOST:PORT"),
        (("host:65535", 2, 0), "--coordinator=host:65535: give HOST:PORT"),
        (("host:1", None, 0), "num_processes=None --process_id=0: give both"),
        (("host:1", 2, 2), "num_processes=2 --process_id=2: give both, numbers from 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(monkeypatch, flags, message):
    def no_launcher(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_launcher)
    with pytest.raises(UserError, match=message):
        with processes.joined(*flags):
            pass


def test_alone_needs_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with processes.joined(None, None, None):
        pass


def test_a_launcher_that_jax_knows_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    with processes.joined("auto", None, None):
        pass
    assert asked == [{"heartbeat_timeout_seconds": processes.HEARTBEAT}]
