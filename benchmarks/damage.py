"""Damage to a checkpoint, one bit or one cut at a time: is it noticed, and is the older one used?

    JAX_PLATFORMS=cpu python -m benchmarks.damage --count=500 [--seed=0]

Two checkpoints of the training state of a small model (parameters, both moments of AdamW, counters)
are saved; then, count times, one file of the newer one gets a flipped bit, or, in turn, loses its
end, one byte at least. Every file of it is as likely, every place in it too. Prints how many were
noticed by `checkpoint.inspect`, and how many times `Checkpoints.restore` put the damaged step aside
and gave every bit of the older one. The last line is JSON; exit code 1 unless it is all of them.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import random
import shutil
import sys
import tempfile

import jax
import numpy as np

from jaxseg import build, training
from jaxseg.checkpoint import Checkpoints, inspect
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes
from jaxseg.optim import make_optimizer, trainable

CLASSES, OLDER, NEWER = 4, "step_00000001", "step_00000002"


def training_state(seed: int):
    """The state in which a training of the quick start's smallest form begins."""
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    params, stats = draw(*shapes(build.segmenter_spec(config, CLASSES)), seed)
    optim = build.optim_spec(config)
    trained = trainable(optim, params)
    optimizer = make_optimizer(optim, trained)
    state = training.initial_state(params, stats, optimizer, trained, build.train_spec(config))
    return jax.tree.map(np.asarray, state)


def damage(path: pathlib.Path, kind: str, choose: random.Random) -> None:
    """One flipped bit, or an end cut off."""
    content = bytearray(path.read_bytes())
    place = choose.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << choose.randrange(8)
    path.write_bytes(content[:place] if kind == "truncation" else content)


def noticed(folder: pathlib.Path) -> bool:
    """Whether the newer step is called damaged, and the older one is not."""
    return [bool(health.damage) for health in inspect(folder)] == [False, True]


def recovered(folder: pathlib.Path, expected) -> bool:
    """Whether the older step is used, bit by bit, and the newer one is put aside."""
    with contextlib.redirect_stdout(io.StringIO()), Checkpoints(folder) as checkpoints:
        step, state = checkpoints.restore(expected)
    same = jax.tree.map(lambda a, b: a.tobytes() == np.asarray(b).tobytes(), state, expected)
    return step == 1 and all(jax.tree.leaves(same)) and (folder / f"damaged_{NEWER}").is_dir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = {"flips": 0, "truncations": 0, "noticed": 0, "recovered": 0}
    with tempfile.TemporaryDirectory() as name:
        whole, folder = pathlib.Path(name, "whole"), pathlib.Path(name, "damaged")
        states = [training_state(seed) for seed in (1, 2)]
        with Checkpoints(whole) as checkpoints:
            for step, state in enumerate(states, start=1):
                checkpoints.save(step, state, step / 10)
                checkpoints.wait()
        files = [path for path in sorted((whole / NEWER).rglob("*")) if path.is_file()]
        files = [path.relative_to(whole) for path in files if path.stat().st_size]
        size = sum((whole / path).stat().st_size for path in files)
        print(f"a checkpoint of {size} bytes in {len(files)} files", flush=True)
        for index in range(options.count):
            choose = random.Random(f"{options.seed}/{index}")
            kind = ("flip", "truncation")[index % 2]
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            path = choose.choice(files)
            damage(folder / path, kind, choose)
            found[f"{kind}s"] += 1
            seen, used = noticed(folder), recovered(folder, states[0])
            found["noticed"] += seen
            found["recovered"] += used
            if not (seen and used):
                print(f"{kind} {index} of {path}: noticed {seen}, older one used {used}")
    print(json.dumps({"seed": options.seed, "files": len(files), "bytes": size} | found))
    return int(not found["noticed"] == found["recovered"] == options.count)


if __name__ == "__main__":
    sys.exit(main())
