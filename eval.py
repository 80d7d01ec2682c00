"""Evaluate a trained model: ``python eval.py --config=configs/NAME.py --workdir=DIR``.

Reads DIR/model.safetensors, writes results.json, confusion.png and report.html to DIR or to --out;
where tokens leave early also exits/, pictures of where and when, and where patches share tokens
merges/, and where methods choose tokens usage/, a page of who goes through which blocks. Without
--config the configuration stored beside the weights is used. Several processes share out the images
of a segmenter; the first one writes.
"""

import pathlib
import tempfile

from absl import flags

from jaxseg import cli, processes

FLAGS = flags.FLAGS


def evaluate(config, workdir: str, out: str = "") -> dict:
    """Evaluates the model in ``workdir``; returns what ``results.json`` holds."""
    import jax

    from jaxseg import build, model_dir, tasks

    stored = model_dir.load(workdir)
    config = config or stored.config
    source = build.make_source(config, config.eval.split)
    model_dir.check_classes(stored, source.classes)
    task = tasks.of(config)
    if jax.process_index():  # all know the result of all, one writes it
        with tempfile.TemporaryDirectory() as spare:
            return task.evaluate(config, stored, source, pathlib.Path(spare))
    folder = pathlib.Path(out or workdir)
    folder.mkdir(parents=True, exist_ok=True)
    return task.evaluate(config, stored, source, folder)


def main(_) -> None:
    from jaxseg import startup

    with processes.joined(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id):
        startup.prepare()
        evaluate(FLAGS.config, FLAGS.workdir, FLAGS.out)


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("workdir", None, "Folder of a finished training run.", required=True)
    flags.DEFINE_string("out", "", "Folder to write to; default: the workdir.")
    processes.define_flags()
    cli.run(main)
