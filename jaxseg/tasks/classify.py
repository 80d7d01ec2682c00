"""Classification: the one class of an image."""

import json
import pathlib
import platform
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxseg import build, exits
from jaxseg.class_eval import ClassResult, evaluate_classifiers
from jaxseg.convert.start import start_from
from jaxseg.data.class_transforms import ClassRecipe
from jaxseg.data.classes import Source
from jaxseg.errors import UserError
from jaxseg.model_arrays import arrays_for
from jaxseg.model_dir import StoredModel
from jaxseg.models.macs import pruned_macs
from jaxseg.models.network import network
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.weights import write_atomically

HEAD = "heads.0.linear.kernel"


def spec(config, classes: int) -> SegmenterSpec:
    return build.classifier_spec(config, classes)


def recipe(config, classes: int) -> ClassRecipe:
    """The training transforms."""
    return build.class_recipe(config, classes)


def start(config, spec: SegmenterSpec, params: Mapping, stats: Mapping):
    """(parameters, statistics, lines that say what was taken).

    Raises UserError: what `start_from` does, and distillation from a model of other classes.
    """
    if not config.init_from:
        return params, stats, []
    taken, stats, note = start_from(config.init_from, spec, params, stats)
    if config.method.distil and np.array_equal(taken[HEAD], params[HEAD]):
        raise UserError(
            f"config.init_from={config.init_from!r}: has no classifier of {spec.classes} classes "
            f"to learn from; name a model that was trained on them, or set config.method.distil=0"
        )
    return taken, stats, [note]


def validator(config, network, bfloat16: bool) -> Callable[[Mapping, Mapping, Source], dict]:
    """(parameters, statistics, source) -> figures; ``score`` decides which checkpoint is best."""
    program, how = network.program(bfloat16=bfloat16), build.class_eval_spec(config)

    def validate(params, stats, source) -> dict[str, float]:
        arrays = program.prepare(dict(params) | dict(stats))
        found = evaluate_classifiers({"model": (program, arrays)}, source, how, "validate")["model"]
        return {"score": found.top1, "top1": found.top1, "top5": found.top5}

    return validate


def evaluate(config, stored: StoredModel, source: Source, out: pathlib.Path) -> dict:
    """Top-1, top-5, MACs and speed; what ``results.json`` holds. Writes it to ``out``."""
    spec = build.classifier_spec(config, len(source.classes))
    given = arrays_for(stored, config, spec)
    # Where tokens skip blocks, the same weights are run with everybody chosen too, in turn.
    specs = {"model": spec} | ({"dense": spec.dense()} if spec.adaptive else {})
    bfloat16, how = config.model.bfloat16, build.class_eval_spec(config)
    programs = {name: network(each).program(bfloat16=bfloat16) for name, each in specs.items()}
    arrays = programs["model"].prepare(given)
    begin = time.perf_counter()
    models = {name: (program, arrays) for name, program in programs.items()}
    found = evaluate_classifiers(models, source, how)
    wall = time.perf_counter() - begin

    result, device = found["model"], jax.devices()[0]
    gmacs = mean_gmacs(spec, result, how.crop)
    results = {
        "top1": result.top1,
        "top5": result.top5,
        "images": result.images,
        "split": config.eval.split,
        "gmacs_per_image": gmacs,
        "images_per_second": result.images_per_second,
        "batch_size": how.batch_size,
        "compile_seconds": result.compile_seconds,
        "wall_seconds": wall,
        "device": f"{device.device_kind} ({platform.processor() or platform.machine()})",
        "jax": jax.__version__,
    }
    if spec.adaptive:
        dense = found["dense"]
        ratio = mean_gmacs(specs["dense"], dense, how.crop) / gmacs
        speedup = result.images_per_second / dense.images_per_second
        results |= {
            "layers": exits.ends_of(spec),
            "tokens_per_stage": np.mean(result.alive, axis=0).tolist(),
            "dense_top1": dense.top1,
            "dense_top5": dense.top5,
            "dense_gmacs_per_image": ratio * gmacs,
            "dense_images_per_second": dense.images_per_second,
            "flops_ratio": ratio,
            "speedup": speedup,
            "efficiency": speedup / ratio,
        }
    write_atomically(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    print(line(results))
    print(f"wrote {out}/results.json")
    return results


def mean_gmacs(spec: SegmenterSpec, result: ClassResult, size: tuple[int, int]) -> float:
    """GMACs of an image of ``size``, mean over images, from the tokens that were computed."""
    counts, images = np.unique(np.stack(result.alive), axis=0, return_counts=True)
    each = [pruned_macs(spec, size, row.tolist()).gmacs_all_heads for row in counts]
    return float(np.average(each, weights=images))


def line(results: Mapping[str, object]) -> str:
    """`evaluate`'s results as one line of a table."""
    cells = [
        f"top-1 {100 * results['top1']:.2f}",
        f"top-5 {100 * results['top5']:.2f}",
        f"GMACs {results['gmacs_per_image']:.2f}",
        f"images/s {results['images_per_second']:.1f}",
    ]
    if "dense_top1" in results:
        cells += [
            f"dense: top-1 {100 * results['dense_top1']:.2f}",
            f"GMACs {results['dense_gmacs_per_image']:.2f} ({results['flops_ratio']:.2f} x)",
            f"images/s {results['dense_images_per_second']:.1f} ({results['speedup']:.2f} x)",
            f"efficiency {results['efficiency']:.2f}",
        ]
    return " | ".join(cells)
