"""Kill a training at random moments, start it again, and compare its weights with undisturbed ones.

    JAX_PLATFORMS=cpu python -m benchmarks.kill_training --minutes=8

Every history is one small run (drawn shapes, a checkpoint after each step) that is killed with
SIGKILL after a random time, again and again, and resumed until it ends; each resumed start uses
another number of data workers (0 or 1). Prints kills, starts that refused or failed, steps put
aside as damaged, and histories whose model differs in any bit. Exit code 1 unless
these last three are 0. Training processes are forked from one that has imported everything.
"""

import argparse
import importlib
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import NamedTuple

import train
from jaxseg import startup
from jaxseg.errors import UserError
from jaxseg.weights import digest, load_weights

# What `train.train` imports, so that forked children need not; none of it starts a jax backend.
for _name in ("build", "checkpoint", "data.pipeline", "model_dir", "resume", "tasks", "training"):
    importlib.import_module(f"jaxseg.{_name}")


def start(workdir: pathlib.Path, steps: int, workers: int) -> int:
    """The number of a child process that trains in ``workdir``; its output goes to a file there."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        workdir.mkdir(exist_ok=True)
        with open(workdir / "output.txt", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        startup.prepare()
        config = importlib.import_module("configs.quickstart").get_config("smoke")
        config.train.steps, config.resume, config.data.workers = steps, True, workers
        train.train(config, str(workdir), "benchmarks.kill_training")
        code = 0
    except BaseException as error:
        print(repr(error), flush=True)
    os._exit(code)


class Counts(NamedTuple):
    """``saving``: kills that left a half written save. ``failed``: starts that did not go on."""

    kills: int
    saving: int
    failed: int


def history(workdir: pathlib.Path, steps: int, span: float, draw: random.Random) -> Counts:
    """What happened until the run has ended; at most 20 starts, the last undisturbed.

    ``span``: seconds within which the kill comes.
    """
    kills = saving = failed = 0
    for attempt in range(20):
        child = start(workdir, steps, workers=attempt % 2)
        deadline = time.monotonic() + draw.uniform(0, span)
        status = None
        while status is None and (time.monotonic() < deadline or attempt == 19):
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            saving += any(workdir.glob("checkpoints/.saving_*"))
        elif status == 0:
            return Counts(kills, saving, failed)
        else:
            failed += 1
    return Counts(kills, saving, failed)


def sha256(workdir: pathlib.Path) -> str:
    """Of all names, shapes and values of the model; "none" if there is no intact one."""
    try:
        return digest(*load_weights(workdir / "model.safetensors"))
    except UserError:
        return "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("warm", "whole"):  # the first one compiles
            began = time.monotonic()
            os.waitpid(start(root / name, options.steps, workers=0), 0)
        span, expected = time.monotonic() - began, sha256(root / "whole")
        print(f"undisturbed: {span:.1f} s, sha256 {expected[:16]}", flush=True)
        if expected == "none":
            print((root / "whole" / "output.txt").read_text())
            return 1
        histories = damaged = different = 0
        total = Counts(0, 0, 0)
        while time.monotonic() < end:
            workdir = root / str(histories)
            new = history(workdir, options.steps, span, draw)
            histories += 1
            total = Counts(*(a + b for a, b in zip(total, new, strict=True)))
            damaged += len(list(workdir.glob("checkpoints/damaged_*")))
            different += sha256(workdir) != expected
            if new.failed or sha256(workdir) != expected:
                print((workdir / "output.txt").read_text()[-2000:])
            shutil.rmtree(workdir)
            print(
                f"{histories} histories, {total.kills} kills ({total.saving} while saving), "
                f"{total.failed} failed starts, "
                f"{damaged} damaged steps, {different} different results",
                flush=True,
            )
    return int(bool(total.failed or damaged or different))


if __name__ == "__main__":
    sys.exit(main())
