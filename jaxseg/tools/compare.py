r"""Models and methods side by side: one table from one run over the same images.

    python -m jaxseg.tools.compare --out=runs/compared dense=runs/segvit_vitti_camvid \
        'DToP=runs/segvit_vitti_camvid;method.name=dtop;method.exit6.threshold=0.9' \
        EViT=runs/evit_vitti_camvid

Every argument is [LABEL=]MODEL[;FIELD=VALUE]...: what `jaxseg.load` takes, and fields of its stored
configuration that shall be others. All models answer for each image of the split in turn, so that
their speeds compare; images come one at a time. The first is what the others are measured against,
in its dense form if it has exits. Rows of one label are one line in the picture. Writes
compare.json, compare.csv, compare.md and compare.png to --out.
"""

import ast
import json
import pathlib
from dataclasses import replace

import numpy as np
from absl import flags

import jaxseg
from jaxseg import build, cli, exits, startup, trade_off
from jaxseg.config import update
from jaxseg.errors import UserError
from jaxseg.evaluation import EvalResult, evaluate
from jaxseg.inference import Predictor
from jaxseg.model import Model
from jaxseg.models.network import network
from jaxseg.weights import write_atomically

FLAGS = flags.FLAGS


def parse(argument: str) -> tuple[str, str, dict]:
    """``label=model;field=value`` as (label, model, nested fields); the model is its own label."""
    first, *settings = argument.split(";")
    label, model = first.split("=", 1) if "=" in first else (first, first)
    if not label or not model:
        raise UserError(f"{argument!r}: write LABEL=MODEL, or MODEL alone")
    fields: dict = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not name or not equals:
            raise UserError(f"{argument!r}: {setting!r} is not FIELD=VALUE")
        *parts, last = name.removeprefix("config.").split(".")
        inner = fields
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = _value(text)
    return label, model, fields


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def contender(argument: str) -> tuple[str, Model]:
    """The label and the model, configured as the argument says."""
    label, where, fields = parse(argument)
    model = jaxseg.load(where)
    if not fields:
        return label, model
    config = model.config
    update(config, fields, argument)
    return label, model.configured(config)


def in_dense_form(model: Model) -> Model:
    """The same weights with every token everywhere."""
    if not model.spec.adaptive:
        return model
    spec = model.spec.dense()
    program = network(spec).program(bfloat16=model.config.model.bfloat16)
    return replace(model, spec=spec, predictor=Predictor(program, model.predictor.spec))


def row(label: str, model: Model, result: EvalResult, first: dict | None) -> dict:
    """Figures of one model; ``first`` is the row that it is compared with (None: itself)."""
    alive = np.concatenate(result.alive)
    found = {
        "label": label,
        "model": model.stored.origin,
        "miou": result.scores.miou,
        "pixel_accuracy": result.scores.pixel_accuracy,
        "gmacs_per_image": exits.mean_gmacs(model.spec, result),
        "images_per_second": result.images_per_second,
        "seconds_quartiles": [float(q) for q in np.quantile(result.seconds, (0.25, 0.5, 0.75))],
        "tokens": [float(n) for n in alive.mean(axis=0)],
    }
    first = first or found
    ratio = first["gmacs_per_image"] / found["gmacs_per_image"]
    speedup = found["images_per_second"] / first["images_per_second"]
    return found | {"flops_ratio": ratio, "speedup": speedup, "efficiency": speedup / ratio}


def compare(arguments: list[str], split: str = "") -> dict:
    """Evaluates all; what ``compare.json`` holds. The data set is that of the first model."""
    if len(arguments) < 2:
        raise UserError("give two models or more, the one to compare with first")
    contenders = [contender(argument) for argument in arguments]
    contenders[0] = (contenders[0][0], in_dense_form(contenders[0][1]))
    config = contenders[0][1].config
    source = build.make_source(config, split or config.eval.split)
    for argument, (_, model) in zip(arguments, contenders, strict=True):
        if model.classes.names != source.classes.names:
            raise UserError(
                f"{argument}: its classes are not those of the data set of the first model; "
                f"compare models of one data set"
            )
    predictors = {
        argument: (model.predictor, model.arrays)
        for argument, (_, model) in zip(arguments, contenders, strict=True)
    }
    if len(predictors) < len(arguments):
        raise UserError("the same argument twice: name each model and its fields once")
    results = evaluate(predictors, source, label="compare")
    rows: list[dict] = []
    for argument, (label, model) in zip(arguments, contenders, strict=True):
        rows.append(row(label, model, results[argument], rows[0] if rows else None))
    return {
        "split": split or config.eval.split,
        "images": len(results[arguments[0]].names),
        "arguments": arguments,
        "rows": rows,
    }


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| | mIoU | GMACs | of the first | tokens | images/s | speed-up | efficiency |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        tokens = ", ".join(f"{n:.0f}" for n in r["tokens"])
        lines.append(
            f"| {r['label']} | {100 * r['miou']:.2f} | {r['gmacs_per_image']:.2f} | "
            f"{100 / r['flops_ratio']:.0f} % | {tokens} | {r['images_per_second']:.2f} | "
            f"{r['speedup']:.2f} | {r['efficiency']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    startup.prepare()
    found = compare(arguments, FLAGS.split)
    rows, out = found["rows"], pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compare.json", (json.dumps(found, indent=2) + "\n").encode())
    write_atomically(out / "compare.csv", trade_off.as_csv(rows).encode())
    write_atomically(out / "compare.md", table(rows).encode())
    trade_off.picture(rows[1:], rows[0], out / "compare.png")
    print(table(rows), end="")
    print(f"wrote {out}/compare.json, compare.csv, compare.md, compare.png")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_string("split", "", "Split to evaluate; default: the first model's eval.split.")
    cli.run(main, arguments=True)
