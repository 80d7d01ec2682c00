"""Segmentation: the class of every pixel."""

import json
import pathlib
import platform
import time
from collections.abc import Callable, Mapping

import jax

from jaxseg import (
    build,
    exit_costs,
    exits,
    merge_pictures,
    metrics,
    oracle,
    report,
    usage_page,
    viz,
)
from jaxseg.convert.start import start_from
from jaxseg.data.classes import Source
from jaxseg.data.transforms import Recipe
from jaxseg.errors import UserError
from jaxseg.evaluation import evaluate as run
from jaxseg.inference import Predictor
from jaxseg.model_arrays import arrays_for, no_oracle, policy_arrays
from jaxseg.model_dir import StoredModel
from jaxseg.models.macs import dense_macs
from jaxseg.models.network import network
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.usage_view import UsageView
from jaxseg.weights import write_atomically


def spec(config, classes: int) -> SegmenterSpec:
    return build.segmenter_spec(config, classes)


def recipe(config, classes: int) -> Recipe:
    """The training transforms."""
    del classes
    return build.recipe(config)


def start(config, spec: SegmenterSpec, params: Mapping, stats: Mapping):
    """(parameters, statistics, lines that say what was taken).

    Raises UserError: files that do not fit, and a policy that reads labels.
    """
    no_oracle(config)
    notes = []
    if config.init_from:
        drawn = dict(params) | dict(stats)
        params, stats, note = start_from(config.init_from, spec, params, stats)
        notes.append(note)
        if isinstance(spec, SparseSpec) and spec.method.distil:
            _can_teach(config.init_from, spec, drawn, params | stats)
    if spec.merge is not None:
        policy = policy_arrays(config, spec)
        params = {n: policy.get(n, v) for n, v in params.items()}
        stats = {n: policy.get(n, v) for n, v in stats.items()}
        notes.append(f"policy ({len(policy)} arrays) from {config.method.policy}")
    return params, stats, notes


def _can_teach(path: str, spec: SparseSpec, drawn: Mapping, taken: Mapping) -> None:
    """Raises UserError: not all of the last head is from the file; the rest is as it was drawn."""
    head = f"heads.{len(spec.heads) - 1}."
    fresh = [n for n in taken if n.startswith(head) and taken[n] is drawn[n]]
    if fresh:
        raise UserError(
            f"config.init_from={path!r}: does not fill {len(fresh)} arrays of the last head "
            f"({fresh[0]} ...), and distillation learns from a trained dense model; name its "
            f"model.safetensors, or set config.method.distil=0"
        )


def validator(config, network, bfloat16: bool) -> Callable[[Mapping, Mapping, Source], dict]:
    """(parameters, statistics, source) -> figures; ``score`` decides which checkpoint is best."""
    predictor = Predictor(network.program(bfloat16=bfloat16), build.eval_spec(config))

    def validate(params, stats, source) -> dict[str, float]:
        arrays = predictor.program.prepare(dict(params) | dict(stats))
        result = run({"model": (predictor, arrays)}, source, label="validate")
        miou = result["model"].scores.miou
        return {"score": miou, "miou": miou}

    return validate


def evaluate(config, stored: StoredModel, source: Source, out: pathlib.Path) -> dict:
    """Scores, MACs and speed; what ``results.json`` holds. Writes all files to ``out``."""
    classes = source.classes
    spec = build.segmenter_spec(config, len(classes))
    given = arrays_for(stored, config, spec)
    foreground = build.foreground(config, classes) if isinstance(spec, SparseSpec) else ()

    # ---- predict --------------------------------------------------------------------------------
    # Where tokens leave or are shared, the same weights are run densely too, in turn.
    specs = {"model": spec} | ({"dense": spec.dense()} if spec.adaptive else {})
    how = build.eval_spec(config)
    bfloat16 = config.model.bfloat16
    programs = {name: network(each).program(bfloat16=bfloat16) for name, each in specs.items()}
    arrays = programs["model"].prepare(given)
    predictors = {name: (Predictor(program, how), arrays) for name, program in programs.items()}
    if config.method.policy == "oracle" and spec.merge is not None:
        share = dict(zip(config.policy.sides, config.policy.purity, strict=True))
        told = oracle.told(arrays, how, spec.merge.decide.sides, len(classes), share)
        predictors["model"] = (predictors["model"][0], told)
    costs = exit_costs.ExitCosts(len(spec.exits), spec.vit.patch, len(classes))
    each = costs if spec.exits else None
    begin = time.perf_counter()
    found = run(predictors, source, pictures=config.eval.pictures, each=each)
    wall = time.perf_counter() - begin
    result = found["model"]
    scores = result.scores

    # ---- count ----------------------------------------------------------------------------------
    crop = tuple(config.data.crop)
    macs = exits.mean_macs(spec, result) if spec.adaptive else dense_macs(spec, crop)
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
        "gmacs_input": "mean over inputs" if spec.adaptive else list(crop),
        "gmacs_per_image": per_image,
        "images_per_second": result.images_per_second,
        "compile_seconds": result.compile_seconds,
        "wall_seconds": wall,
        "device": f"{device.device_kind} ({platform.processor() or platform.machine()})",
        "jax": jax.__version__,
    }
    if spec.adaptive:
        summary |= exits.summary(spec, result, specs["dense"], found["dense"])
    parts = costs.summary(exits.layers_of(spec), classes) if spec.exits else []
    said = exit_costs.lines(parts, len(result.names))
    results = _numbers(summary) | {
        "iou": _numbers(dict(zip(classes.names, scores.iou, strict=True))),
        "by_exit": [_numbers(part) for part in parts],
        "confusion": result.matrix.tolist(),
    }
    write_atomically(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    viz.confusion_picture(result.matrix, classes, out / "confusion.png")
    title = f"{out.name}: {config.eval.split}"
    report.write_report(out / "report.html", title, summary | said, scores, classes, result.samples)
    print(metrics.table(scores))
    print(
        f"mIoU {100 * scores.miou:.2f}   GMACs {macs.gmacs_backbone_and_final_head:.2f} "
        f"(all heads {macs.gmacs_all_heads:.2f})   images/s {result.images_per_second:.2f} "
        f"(after {result.compile_seconds:.1f} s of compiling)"
    )
    if spec.adaptive:
        print(exits.line(summary))
    for name, text in said.items():
        print(f"{name + ':':21} {text}")
    if spec.merge is not None:
        merge_pictures.write_pictures(out / "merges", result, how, spec.vit.patch)
    asks = spec.merge is None or config.method.policy != "oracle"  # without labels at hand
    if spec.exits and asks:
        view = exits.StageView(network(spec), how)
        # Windows share one program, whole images of many sizes do not.
        samples = result.samples if how.mode == "whole" else result.samples[:3]
        exits.write_pictures(out / "exits", view, arrays, samples, result, classes)
    if isinstance(spec, SparseSpec) and asks:
        view = UsageView(network(spec), how)
        folder = out / "usage"
        usage_page.write(folder, title, view, arrays, source, result.samples, foreground)
    print(f"wrote {out}/results.json, confusion.png, report.html")
    return results


def _numbers(values: Mapping) -> dict:
    """JSON has no NaN: an absent class, or a speed that could not be measured, is null."""
    return {n: None if isinstance(v, float) and v != v else v for n, v in values.items()}
