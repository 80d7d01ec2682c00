"""Endless shuffled training batches whose only state is the step number."""

import multiprocessing
import os
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from jaxseg.data.class_transforms import ClassRecipe
from jaxseg.data.classes import Source
from jaxseg.data.transforms import Recipe
from jaxseg.errors import UserError

_THREADS = min(8, os.cpu_count() or 1)  # each prepares one batch, so as many are held ready


def train_batches(
    source: Source,
    recipe: Recipe | ClassRecipe,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields dict(image=float32[B,h,w,3], label) for each step from start_step on.

    label: uint8[B,h,w], or float32[B,K] of a `ClassRecipe`, which may mix the images of a batch
    (then a process mixes its own).

    The batch of a step depends on (source, recipe, batch_size, seed, step, shard) alone, bit for
    bit: not on where the run started nor on ``workers``. Every epoch has a new order and new
    augmentations; a batch that reaches past the end of an epoch goes on with the next one, so
    nothing is dropped and a batch may be larger than the data set.

    ``workers`` processes (0: threads of this process) prepare batches ahead; they end with this
    process, however it ends. Close it (``contextlib.closing``) to stop threads and workers.
    Process ``shard[0]`` of ``shard[1]`` gets ``batch_size`` examples of its own: the batches of
    all, one after the other, are the batch of a single process.

    Raises UserError: nothing to read, batch_size < 1, and while iterating what the source raises
    (a broken file), also from worker processes.
    """
    if len(source) == 0:
        raise UserError("the training split holds no example: check config.data.train")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is too small: use 1 or more")
    index, count = shard
    # Every shard's batch is a run of the common stream, one after the other: so device d of all
    # devices gets the same examples, with the same augmentations, for any number of processes.
    examples = (
        grain.MapDataset.source(source).seed(seed).shuffle().repeat(None).random_map(recipe.sample)
    )
    batches = examples.batch(batch_size, drop_remainder=True).random_map(recipe.batch)
    return _iterate(batches[index::count][start_step:], workers)


def _iterate(batches: grain.MapDataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
    if workers:
        # Grain hands absl flags on to its worker processes and fails where nobody parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(num_workers=workers)
        iterator = iter(batches.to_iter_dataset(read).mp_prefetch(processes, _end_with_parent))
    else:
        read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
        iterator = iter(batches.to_iter_dataset(read))
    try:
        yield from iterator
    finally:
        iterator.close()


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker: a killed parent cannot stop it, and it would wait for ever with its memory.

    Python gives every such process the end of a pipe that closes when the parent has gone.
    """
    del worker, workers
    parent = multiprocessing.parent_process()

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
