"""What checkpoints cost a training: how long a save holds up the loop, and how long it goes on.

    JAX_PLATFORMS=cpu python -m benchmarks.save_stall --config=configs/segvit_vitti_camvid.py

Trains on random images with the configuration's model, crop and batch size (change them as for
train.py). The share of a run that saves take is printed twice: the part that holds up the loop, and
all of a save, as if the machine could do nothing beside it.
"""

import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import flags

from jaxseg import build, cli, startup, tasks, training
from jaxseg.checkpoint import Checkpoints
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes
from jaxseg.optim import learning_rate, make_optimizer, trainable
from jaxseg.parallel import AXIS, pmap_step, replicate, shard, unreplicate

FLAGS = flags.FLAGS


def main(_) -> None:
    startup.prepare()
    config, draws = FLAGS.config, np.random.default_rng(0)
    spec = tasks.of(config).spec(config, FLAGS.classes)
    model = network(spec, AXIS)
    params, stats = draw(*shapes(spec), config.seed)
    plan, optim = build.train_spec(config), build.optim_spec(config)
    trained = trainable(optim, params)
    optimizer = make_optimizer(optim, trained)
    state = training.initial_state(params, stats, optimizer, trained, plan)
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    run = pmap_step(training.make_step(model, optimizer, learning_rate(optim), trained, plan))
    area = config.train.batch_size, *config.data.crop
    image = draws.normal(size=(*area, 3)).astype(np.float32)
    label = draws.integers(0, FLAGS.classes, area, dtype=np.uint8)
    batch, key = shard({"image": image, "label": label}), jax.random.key(0)

    def step(state):
        begin = time.perf_counter()
        state = jax.block_until_ready(run(state, batch, key)[0])
        return state, time.perf_counter() - begin

    state, _ = step(replicate(state))  # compiles
    alone, beside, blocking, whole = [], [], [], []
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        with Checkpoints(pathlib.Path(folder)) as checkpoints:
            for number in range(FLAGS.rounds):
                for busy in (False, True):
                    state, seconds = step(state)
                    alone.append(seconds)
                    begin = time.perf_counter()
                    checkpoints.save(2 * number + busy, unreplicate(state))
                    blocking.append(time.perf_counter() - begin)
                    if busy:
                        state, seconds = step(state)
                        beside.append(seconds)
                    checkpoints.wait()
                    if not busy:
                        whole.append(time.perf_counter() - begin)
    alone, beside, blocking, whole = map(statistics.median, (alone, beside, blocking, whole))
    interval = alone * plan.checkpoint_every
    moved = sum(params[name].nbytes for name in trained)
    print(f"gradients: {moved / 1e6:.1f} MB; state: {size / 1e6:.1f} MB")
    print(f"step: {alone:.2f} s, with a save beside it {beside:.2f} s")
    print(f"save: the loop waits {1e3 * blocking:.0f} ms; until it is on the disk {whole:.2f} s")
    print(
        f"share at train.checkpoint_every={plan.checkpoint_every}: {blocking / interval:.4%}, "
        f"at most {whole / interval:.4%}"
    )


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("classes", 11, "Classes of the data set.")
    flags.DEFINE_integer("rounds", 5, "Saves to time.")
    flags.DEFINE_string("folder", None, "Where to save; default: the system's temporary folder.")
    cli.run(main)
