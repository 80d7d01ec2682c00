"""Training images per second that the data pipeline makes: threads, one worker process, several.

    JAX_PLATFORMS=cpu python -m benchmarks.loader --config=configs/segvit_vitb_ade20k.py

Reads JPEG images of drawn shapes with PNG labels, of ADE20K's usual size, through the
configuration's transforms. Nothing else runs beside it: a training shares its cores with a device
that is a CPU, but not with a GPU.
"""

import contextlib
import itertools
import os
import pathlib
import tempfile
import time

from absl import flags
from PIL import Image

from jaxseg import build, cli
from jaxseg.data.folder import folder
from jaxseg.data.pipeline import train_batches
from jaxseg.data.shapes import shapes

FLAGS = flags.FLAGS


def prepare(root: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """A data set of ``count`` images of ``size`` (height, width) in the layout of folders."""
    drawn = shapes(count, size, seed=0)
    for part in ("images", "labels"):
        (root / part / "train").mkdir(parents=True)
    names = [f"{i} {name}\n" for i, name in enumerate(drawn.classes.names)]
    (root / "classes.txt").write_text("".join(names))
    for i in range(count):
        sample = drawn[i]
        image, label = Image.fromarray(sample["image"]), Image.fromarray(sample["label"])
        image.save(root / "images" / "train" / f"{i}.jpg", quality=90)
        label.save(root / "labels" / "train" / f"{i}.png")


def main(_) -> None:
    config = FLAGS.config
    batch = config.train.batch_size
    with tempfile.TemporaryDirectory() as root:
        prepare(pathlib.Path(root), 32, (512, 683))
        source, recipe = folder(root, "train"), build.recipe(config)
        print(f"{os.cpu_count()} cores, crop {recipe.crop}, batches of {batch}")
        for workers in map(int, FLAGS.workers):
            batches = train_batches(source, recipe, batch, seed=0, workers=workers)
            with contextlib.closing(batches):
                # What is made ahead while the clock stands still must not count.
                skipped = 10 + 2 * workers
                for _ in itertools.islice(batches, skipped):
                    pass
                begin = time.perf_counter()
                for _ in itertools.islice(batches, FLAGS.batches):
                    pass
                seconds = time.perf_counter() - begin
            name = f"{workers} worker processes" if workers else "threads"
            print(f"{name}: {FLAGS.batches * batch / seconds:.1f} images/s", flush=True)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes; 0 = threads.")
    flags.DEFINE_integer("batches", 30, "Batches to time.")
    cli.run(main)
