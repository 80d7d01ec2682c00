"""Train a segmenter: ``python train.py --config=configs/NAME.py --workdir=DIR``.

Leaves in DIR: model.safetensors and config.json (what eval.py and the tools load), checkpoints/
(to go on with --config.resume=True), metrics.jsonl, tensorboard/, run.json and starts.jsonl. A
killed run loses nothing that was checkpointed; SIGTERM and Ctrl-C checkpoint first, a second one
ends at once. docs/reliability.md says what is promised, docs/scale.md how several machines do it.
"""

import contextlib
import itertools
import os
import pathlib
import shlex
import signal
import sys

from absl import flags

from jaxseg import cli, processes
from jaxseg.errors import UserError

FLAGS = flags.FLAGS


def train(config, workdir: str, command: str) -> None:
    """Everything from data to ``model.safetensors``."""
    import jax

    from jaxseg import build, logs, model_dir, resume, tasks, training
    from jaxseg.checkpoint import Checkpoints
    from jaxseg.config import from_json, to_json
    from jaxseg.data.pipeline import train_batches
    from jaxseg.models.initial import draw
    from jaxseg.models.network import network, shapes
    from jaxseg.optim import learning_rate, make_optimizer, trainable
    from jaxseg.parallel import AXIS, require_same
    from jaxseg.progress import Progress
    from jaxseg.run_lock import run_lock

    primary = jax.process_index() == 0

    # ---- data -----------------------------------------------------------------------------------
    source = build.make_source(config, "train")
    held_out = build.make_source(config, "val")
    classes = source.classes
    print(f"data: {len(source)} images, {len(held_out)} for validation, {len(classes)} classes")
    data = resume.data_record(source, held_out)
    require_same(config.to_dict(), "configuration")
    require_same(data, "data set")

    # ---- model ----------------------------------------------------------------------------------
    task = tasks.of(config)
    spec = task.spec(config, len(classes))
    model = network(spec, AXIS)
    params, stats, notes = task.start(config, spec, *draw(*shapes(spec), config.seed))
    if not config.init_from:
        print("start: random numbers, since config.init_from names no file")
    for note in notes:
        print(f"start: {note}")
    print(f"model: {sum(value.size for value in params.values()) / 1e6:.2f} M parameters")

    # ---- optimizer, step, state -----------------------------------------------------------------
    plan, optim = build.train_spec(config), build.optim_spec(config)
    trained = trainable(optim, params)
    params |= build.teacher(config, spec, params | stats)  # frozen
    optimizer = make_optimizer(optim, trained)
    rate = learning_rate(optim)
    step = training.make_step(model, optimizer, rate, trained, plan)
    state = training.initial_state(params, stats, optimizer, trained, plan)
    validator = task.validator(config, model, plan.bfloat16)

    # ---- start: fresh, or where the newest intact checkpoint ended ------------------------------
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(workdir) / "checkpoints"
        if primary:
            stack.enter_context(run_lock(workdir))  # before anything in the folder is touched
        checkpoints = stack.enter_context(Checkpoints(folder))
        log = stack.enter_context(logs.MetricLog(workdir)) if primary else None
        first, newest = 0, checkpoints.latest()
        if newest is not None:
            if not config.resume:
                raise UserError(
                    f"{workdir} holds a run that reached step {newest}; go on with "
                    f"--config.resume=True or name another --workdir"
                )
            text, before = logs.last_start(workdir)
            configs = from_json(text, f"{workdir}/{logs.RUN}").to_dict(), config.to_dict()
            for line in resume.compare(workdir, *configs, before, data, newest):
                print(line)
            first, state = checkpoints.restore(state)
            print(f"resume: step {first}")
        elif any(folder.glob("damaged_*")):
            raise UserError(f"{folder} holds damaged checkpoints only; name another --workdir")
        if primary:
            log.truncate_after(first)
            logs.run_record(workdir, to_json(config), command, data, first)

        # ---- loop -------------------------------------------------------------------------------
        count = jax.process_count()
        parts = jax.device_count() * plan.accumulate
        if config.train.batch_size % parts:
            raise UserError(
                f"train.batch_size={config.train.batch_size} must be a multiple of {parts}: "
                f"{jax.device_count()} devices x {plan.accumulate} micro-batches"
            )
        batches = stack.enter_context(
            contextlib.closing(
                train_batches(
                    source,
                    task.recipe(config, len(classes)),
                    config.train.batch_size // count,
                    seed=config.seed,
                    start_step=first,
                    workers=config.data.workers,
                    shard=(jax.process_index(), count),
                )
            )
        )
        progress = stack.enter_context(Progress(plan.steps, "train", start=first))
        asked_to_stop = _watch_sigterm(count)

        def report(done, values):
            if primary:
                log.write(done, **values)
            progress.update(done, loss=values["loss"], lr=values["lr"])

        def validate(done, params, stats) -> float:
            found = validator(params, stats, held_out)
            score = found.pop("score")
            if primary:
                named = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                print(f"step {done}: validation {named}")
                log.write(done, **{f"val_{name}": value for name, value in found.items()})
            return score

        def checkpoint(done, state, score):
            checkpoints.save(done, state, score)

        hooks = training.Hooks(report, checkpoint, validate, asked_to_stop)
        state = training.fit(step, state, batches, plan, hooks)
        checkpoints.wait()
        if state["step"] < plan.steps:
            raise processes.Stopped(
                f"stopped by Ctrl-C or SIGTERM after step {state['step']}; "
                f"go on with --config.resume=True"
            )
        best = checkpoints.best()
        if best is not None and best != plan.steps:
            _, state = checkpoints.restore(state, best)
        if primary:
            params, stats = training.weights_of(state)
            model_dir.save(workdir, params, stats, config, classes)
            print(f"wrote {workdir}/model.safetensors (weights of step {state['step']})")


def _watch_sigterm(processes: int):
    """A function that says whether SIGTERM or Ctrl-C has come; the second one ends the process at
    once. Several processes must ask after every step: then all are told to stop after the same one,
    whichever got the signal, and a second SIGTERM does nothing."""
    asked = []
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}

    def note(number, _):
        asked.append(True)
        signal.signal(number, usual[number])
        os.write(2, b"\nstopping after this step; once more to stop at once\n")  # print may be busy
        if processes > 1:
            signal.raise_signal(signal.SIGTERM)

    if processes > 1:
        del usual[signal.SIGTERM]  # jax has its own handler, which tells the other processes
    for number in usual:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, note)
    if processes > 1:
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        steps = itertools.count()
        return lambda: reached_preemption_sync_point(next(steps))
    return lambda: bool(asked)


def main(_) -> None:
    from jaxseg import startup

    with processes.joined(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id):
        startup.prepare()
        train(FLAGS.config, FLAGS.workdir, shlex.join(sys.argv))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder for all that this run writes.", required=True)
    processes.define_flags()
    cli.run(main)
