r"""One trained model at many thresholds and exit positions: what accuracy costs, and what it takes.

    python -m jaxseg.tools.sweep --config=configs/dtop_segvit_vitti_camvid.py \
        --config.data.root=CAMVID --workdir=runs/dtop_segvit_vitti_camvid

Every auxiliary head of the model can be an exit. ``--exits=6,8,6+8`` names the positions to try
(1-based layers; default: each alone, and all), ``--thresholds`` the confidences at which tokens
leave. All of them and the dense model answer for each image in turn, so that speeds compare. Writes
sweep.csv, sweep.json and sweep.png into the workdir, one row per combination: mIoU, GMACs per
image, images/s, speedup and efficiency over dense, share of the tokens that is still inside after
each exit.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxseg import build, cli, exits, model_arrays, model_dir, startup, trade_off
from jaxseg.errors import UserError
from jaxseg.evaluation import evaluate
from jaxseg.inference import Predictor
from jaxseg.models.network import network, steered
from jaxseg.models.segmenter import with_decisions
from jaxseg.models.sparse import SparseSpec
from jaxseg.selection import above_threshold
from jaxseg.weights import write_atomically

FLAGS = flags.FLAGS
_THRESHOLDS = "sweep.thresholds"


def positions_of(named: list[str], taps: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Exit layers (1-based) of each combination; ``taps`` are those of the auxiliary heads."""
    known = tuple(tap + 1 for tap in taps)
    if not known:
        raise UserError("this model has no auxiliary head to leave at: see config.model.taps")
    if not named:
        alone = [(layer,) for layer in known]
        return alone + ([known] if len(known) > 1 else [])
    found = []
    for text in named:
        parts = text.split("+")
        if not all(part.isdigit() and int(part) in known for part in parts):
            raise UserError(f"--exits={text}: the heads of this model read layers {known}")
        found.append(tuple(sorted(int(part) for part in parts)))
    return found


def spec_of(config, layers: tuple[int, ...], classes: int):
    """The network with exits after ``layers``; their thresholds come with the arrays."""
    config = config.copy_and_resolve_references()
    config.method.name = "dtop"
    for layer in range(1, 24):
        config.method[f"exit{layer}"].threshold = 0.5 if layer in layers else 1.0
    return build.segmenter_spec(config, classes)


def program_of(spec, bfloat16: bool):
    """The packed program that reads its threshold from the arrays."""

    def respec(threshold):
        def decision(exit_):
            return lambda grades: exit_.plan(
                grades, grades.graded & above_threshold(grades.confidence, threshold)
            )

        return with_decisions(spec, [decision(spec.heads[i].decide) for i in spec.exits])

    return steered(network(spec).program(bfloat16=bfloat16), respec, _THRESHOLDS)


def row(name: str, threshold: float, spec, result, dense_spec, dense) -> dict:
    """One line of the table."""
    figures = exits.summary(spec, result, dense_spec, dense)
    return {
        "exits": name,
        "threshold": threshold,
        "miou": result.scores.miou,
        "gmacs_per_image": exits.mean_gmacs(spec, result),
        "images_per_second": result.images_per_second,
        "flops_ratio": figures["flops_ratio"],
        "speedup": figures["speedup"],
        "efficiency": figures["efficiency"],
        "kept": figures["kept_after_exit"],
    }


def sweep(config, workdir: str, named: list[str], thresholds: list[float]) -> dict:
    """Evaluates everything side by side; what ``sweep.json`` holds."""
    stored = model_dir.load(workdir)
    config = config or stored.config
    if config.model.head == "cascade":
        raise UserError("config.model.head='cascade' has no heads to leave at: use atm or conv")
    source = build.make_source(config, config.eval.split)
    model_dir.check_classes(stored, source.classes)
    model_arrays.no_oracle(config)
    classes = len(source.classes)
    if isinstance(build.segmenter_spec(config, classes), SparseSpec):
        raise UserError(
            f"config.method.name={config.method.name!r} chooses tokens, which no threshold here "
            f"changes: compare its settings with python -m jaxseg.tools.compare"
        )
    positions = positions_of(named, tuple(config.model.taps[:-1]))
    specs = {"+".join(map(str, layers)): spec_of(config, layers, classes) for layers in positions}
    first = next(iter(specs.values()))
    dense_spec = first.dense()

    how, bfloat16 = build.eval_spec(config), config.model.bfloat16
    program = network(dense_spec).program(bfloat16=bfloat16)
    arrays = program.prepare(model_arrays.arrays_for(stored, config, first))
    predictors = {"dense": (Predictor(program, how), arrays)}
    for name, spec in specs.items():
        predictor = Predictor(program_of(spec, bfloat16), how)
        for threshold in thresholds:
            with_it = arrays | {_THRESHOLDS: jnp.float32(threshold)}
            predictors[name, threshold] = (predictor, with_it)
    results = evaluate(predictors, source, label="sweep")
    dense = results.pop("dense")
    rows = [
        row(name, threshold, specs[name], result, dense_spec, dense)
        for (name, threshold), result in results.items()
    ]
    return {
        "split": config.eval.split,
        "images": len(dense.names),
        "dense": {
            "miou": dense.scores.miou,
            "gmacs_per_image": exits.mean_gmacs(dense_spec, dense),
            "images_per_second": dense.images_per_second,
        },
        "rows": rows,
    }


def main(_) -> None:
    startup.prepare()
    try:
        thresholds = sorted(float(text) for text in FLAGS.thresholds)
    except ValueError:
        raise UserError(f"--thresholds={','.join(FLAGS.thresholds)}: give numbers") from None
    if not thresholds or not np.all((0 <= np.array(thresholds)) & (np.array(thresholds) <= 1)):
        raise UserError(f"--thresholds={thresholds}: give one or more numbers from 0 to 1")
    found = sweep(FLAGS.config, FLAGS.workdir, FLAGS.exits, thresholds)
    folder = pathlib.Path(FLAGS.workdir)
    write_atomically(folder / "sweep.json", (json.dumps(found, indent=2) + "\n").encode())
    write_atomically(folder / "sweep.csv", trade_off.as_csv(found["rows"]).encode())
    named = [r | {"label": f"exits after {r['exits'].replace('+', ', ')}"} for r in found["rows"]]
    title = f"thresholds {thresholds[0]:g} to {thresholds[-1]:g}"
    trade_off.picture(named, found["dense"] | {"label": "dense"}, folder / "sweep.png", title)
    dense = found["dense"]
    print("exits    threshold   mIoU   GMACs  images/s  speedup  efficiency")
    print(
        f"{'dense':18}{100 * dense['miou']:7.2f}{dense['gmacs_per_image']:8.2f}"
        f"{dense['images_per_second']:10.2f}"
    )
    for r in found["rows"]:
        print(
            f"{r['exits']:9}{r['threshold']:9.3f}{100 * r['miou']:7.2f}{r['gmacs_per_image']:8.2f}"
            f"{r['images_per_second']:10.2f}{r['speedup']:9.2f}{r['efficiency']:12.2f}"
        )
    print(f"wrote {folder}/sweep.json, sweep.csv, sweep.png")


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("workdir", None, "Folder of a finished training run.", required=True)
    flags.DEFINE_list("exits", [], "Positions, as in 6,8,6+8; default: each alone, and all.")
    flags.DEFINE_list(
        "thresholds", ["0.6", "0.7", "0.8", "0.85", "0.9", "0.95", "0.98", "1.0"], "Confidences."
    )
    cli.run(main)
