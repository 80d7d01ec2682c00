"""Evaluate a trained model: ``python eval.py --config=configs/NAME.py --workdir=DIR``.

Reads DIR/model.safetensors, writes results.json, confusion.png and report.html to DIR or to --out;
where tokens leave early also exits/, pictures of where and when. Without --config the configuration
stored beside the weights is used.
"""

import json
import pathlib
import platform
import time

from absl import flags

from jaxseg import cli
from jaxseg.errors import UserError

FLAGS = flags.FLAGS


def evaluate(config, workdir: str, out: str = "") -> dict:
    """Scores, MACs and speed of the model in ``workdir``; what ``results.json`` holds."""
    import jax

    from jaxseg import build, exits, metrics, model_dir, report, viz
    from jaxseg.inference import Predictor
    from jaxseg.inference import evaluate as run
    from jaxseg.models.macs import dense_macs
    from jaxseg.models.segmenter import network, shapes, without_exits
    from jaxseg.weights import check_same, write_atomically

    # ---- model and data -------------------------------------------------------------------------
    stored = model_dir.load(workdir)
    config = config or stored.config
    source = build.make_source(config, config.eval.split)
    classes = source.classes
    spec = build.segmenter_spec(config, len(classes))
    wanted = {name: shape.shape for part in shapes(spec) for name, shape in part.items()}
    check_same(stored.arrays, wanted, f"{workdir}/{model_dir.WEIGHTS}")
    if classes.names != stored.classes.names:
        raise UserError(
            f"{workdir}: trained on {', '.join(stored.classes.names[:4])} ..., the data set has "
            f"{', '.join(classes.names[:4])} ...; use the classes it was trained on"
        )

    # ---- predict --------------------------------------------------------------------------------
    # Where tokens leave or skip blocks the same weights are run densely too, images in turn.
    specs = {"model": spec} | ({"dense": without_exits(spec)} if spec.saves else {})
    how = build.eval_spec(config)
    bfloat16 = config.model.bfloat16
    programs = {name: network(each).program(bfloat16=bfloat16) for name, each in specs.items()}
    arrays = programs["model"].prepare(stored.arrays)
    predictors = {name: (Predictor(program, how), arrays) for name, program in programs.items()}
    begin = time.perf_counter()
    found = run(predictors, source, pictures=config.eval.pictures)
    wall = time.perf_counter() - begin
    result = found["model"]
    scores = result.scores

    # ---- count ----------------------------------------------------------------------------------
    crop = tuple(config.data.crop)
    macs = exits.mean_macs(spec, result) if spec.saves else dense_macs(spec, crop)
    per_image = exits.mean_gmacs(spec, result)

    # ---- report ---------------------------------------------------------------------------------
    device = jax.devices()[0]
    summary = {
        "miou": scores.miou,
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "images": len(result.names),
        "split": config.eval.split,
        "gmacs_backbone_and_final_head": macs.gmacs_backbone_and_final_head,
        "gmacs_all_heads": macs.gmacs_all_heads,
        "gmacs_input": "mean over inputs" if spec.saves else list(crop),
        "gmacs_per_image": per_image,
        "images_per_second": result.images_per_second,
        "compile_seconds": result.compile_seconds,
        "wall_seconds": wall,
        "device": f"{device.device_kind} ({platform.processor() or platform.machine()})",
        "jax": jax.__version__,
    }
    if spec.saves:
        summary |= exits.summary(spec, result, specs["dense"], found["dense"])
    iou = {n: _number(value) for n, value in zip(classes.names, scores.iou, strict=True)}
    results = {name: _number(value) for name, value in summary.items()} | {
        "iou": iou,
        "confusion": result.matrix.tolist(),
    }
    folder = pathlib.Path(out or workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    viz.confusion_picture(result.matrix, classes, folder / "confusion.png")
    title = f"{folder.name}: {config.eval.split}"
    report.write_report(folder / "report.html", title, summary, scores, classes, result.samples)
    print(metrics.table(scores))
    print(
        f"mIoU {100 * scores.miou:.2f}   GMACs {macs.gmacs_backbone_and_final_head:.2f} "
        f"(all heads {macs.gmacs_all_heads:.2f})   images/s {result.images_per_second:.2f} "
        f"(after {result.compile_seconds:.1f} s of compiling)"
    )
    if spec.saves:
        print(exits.line(summary))
    if spec.exits:
        view = exits.StageView(network(spec), how)
        # Windows share one program, whole images of many sizes do not.
        samples = result.samples if how.mode == "whole" else result.samples[:3]
        exits.write_pictures(folder / "exits", view, arrays, samples, result, classes)
    print(f"wrote {folder}/results.json, confusion.png, report.html")
    return results


def _number(value):
    """JSON has no NaN: an absent class, or a speed that could not be measured, is null."""
    return None if isinstance(value, float) and value != value else value


def main(_) -> None:
    from jaxseg import startup

    startup.prepare()
    evaluate(FLAGS.config, FLAGS.workdir, FLAGS.out)


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("workdir", None, "Folder of a finished training run.", required=True)
    flags.DEFINE_string("out", "", "Folder to write to; default: the workdir.")
    cli.run(main)
