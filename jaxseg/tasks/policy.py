"""A policy for merging: which windows of an image show one class (CTS, STEP)."""

import json
import pathlib
from collections.abc import Callable, Mapping

from jaxseg import build, merge_pictures, viz
from jaxseg.convert.efficientnet import policy_rules, timm_trunk_rules
from jaxseg.convert.files import read_arrays
from jaxseg.convert.rules import convert
from jaxseg.data.classes import Source
from jaxseg.data.transforms import Recipe
from jaxseg.model_arrays import policy_heads
from jaxseg.model_dir import StoredModel
from jaxseg.models.network import network, shapes
from jaxseg.models.policy import PATCH, PolicySpec
from jaxseg.policy_eval import evaluate_policy, table
from jaxseg.weights import check_same, write_atomically


def spec(config, classes: int) -> PolicySpec:
    return build.policy_spec(config, classes)


def recipe(config, classes: int) -> Recipe:
    """The training transforms."""
    del classes
    return build.recipe(config)


def start(config, spec: PolicySpec, params: Mapping, stats: Mapping):
    """(parameters, statistics, lines that say what was taken).

    ``init_from``: EfficientNet-Lite0 of timm, or a released CTS policy.
    """
    if not config.init_from:
        return params, stats, []
    source, both = read_arrays(config.init_from), dict(params) | dict(stats)
    cts = "backbone.conv_stem.weight" in source
    rules = policy_rules("", "") if cts else timm_trunk_rules("trunk.")
    filled = ("trunk.", "head.") if cts else ("trunk.",)
    wanted = {n: value.shape for n, value in both.items() if n.startswith(filled)}
    taken = convert(source, rules, wanted, config.init_from)
    both |= taken
    note = f"{len(taken)} of {len(both)} arrays from {config.init_from}"
    return {n: both[n] for n in params}, {n: both[n] for n in stats}, [note]


def validator(config, network, bfloat16: bool) -> Callable[[Mapping, Mapping, Source], dict]:
    """(parameters, statistics, source) -> figures; ``score`` decides which checkpoint is best."""
    del bfloat16  # small, and its scores are compared with thresholds
    how, decide = build.eval_spec(config), build.merge_decision(config)

    def validate(params, stats, source) -> dict[str, float]:
        arrays = dict(params) | dict(stats)
        found = evaluate_policy(network, arrays, source, how, decide).summary()
        return {n: v for n, v in found.items() if v == v}  # sides that the set has nothing of

    return validate


def evaluate(config, stored: StoredModel, source: Source, out: pathlib.Path) -> dict:
    """Precision, recall and what is merged; what ``results.json`` holds. Writes to ``out``."""
    spec = build.policy_spec(config, len(source.classes))
    wanted = {name: shape.shape for part in shapes(spec) for name, shape in part.items()}
    arrays = policy_heads(stored.arrays, stored.graded, spec.sides, stored.origin)
    check_same(arrays, wanted, stored.origin)
    result = evaluate_policy(
        network(spec),
        arrays,
        source,
        build.eval_spec(config),
        build.merge_decision(config),
        config.eval.pictures,
    )
    summary = result.summary() | {"images": len(result.tokens), "split": config.eval.split}
    results = {n: None if v != v else v for n, v in summary.items()}
    write_atomically(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    (out / "merges").mkdir(exist_ok=True)
    for sample in result.samples:
        pair = [
            merge_pictures.superpatches(sample.seen, windows, PATCH)
            for windows in (sample.windows, sample.oracle)
        ]
        picture = merge_pictures.side_by_side(pair)
        viz.save_png(out / "merges" / f"{sample.name.replace('/', '_')}.png", picture)
    of = result.patches
    shares = {
        "policy": [n / p for n, p in zip(result.tokens, of, strict=True)],
        "labels": [n / p for n, p in zip(result.oracle_tokens, of, strict=True)],
    }
    merge_pictures.token_histogram(out / "merges" / "tokens.png", shares)
    print(table(result))
    print(
        f"score {result.score:.3f}   tokens left {100 * summary['tokens_left']:.1f} %, by the "
        f"labels {100 * summary['tokens_left_oracle']:.1f} %"
    )
    print(f"wrote {out}/results.json, merges/ (policy, labels)")
    return results
