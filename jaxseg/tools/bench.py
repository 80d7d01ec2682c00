r"""Dense against early exits, end to end, at forced keep rates: what is saved and what it takes.

    python -m jaxseg.tools.bench --config=configs/dtop_segvit_vitti_camvid.py --classes=11 \
        --batch=8 --keep=0.55,0.40 --rounds=9

From uint8 images in memory to uint8 label maps on the host, random pixels, at the training crop.
The weights are random unless --workdir names a trained model: how many tokens leave is forced, so
that figures of different models and machines compare. ``--keep`` names the mean share of an image's
tokens that is still inside after each exit; every image of every round draws its own around it.
Which tokens leave is random; grading, selection, packing, heads and label map are all run. The
best tokens of each class stay as context on top of it, so that counts come from what really ran.

Rounds measure both in random order. ``wall`` is what a user waits for; ``cpu``, the time of all
threads, is the steadier figure on a shared machine. Prints a table, then one JSON object:
``speedup`` is dense / pruned of the medians over rounds, ``flops_ratio`` the same of the MACs
(dense: last head alone; pruned: with the heads that decide, on the tokens that were inside),
``efficiency`` = speedup / flops_ratio, 1 where time falls as MACs do. ``spread`` holds the
quartiles of the ratio within rounds. Memory is XLA's own figure: temporaries and results of the
largest program.
"""

import json
import math
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxseg import build, cli, model_dir, startup
from jaxseg.errors import UserError
from jaxseg.inference import EvalSpec, Predictor
from jaxseg.models.initial import draw
from jaxseg.models.macs import pruned_macs
from jaxseg.models.segmenter import SegmenterSpec, network, shapes, steered, without_exits
from jaxseg.programs import Chain, OneProgram

FLAGS = flags.FLAGS
_RATES = "bench.keep"  # travels beside the parameters, so that a new draw compiles nothing


def draw_rates(keep: tuple[float, ...], batch: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [exits, batch]: shares still inside after each exit.

    Stratified uniform between a third of the mean and as far above it; an image that keeps many
    tokens at one exit does so at the next.
    """
    position = (rng.permutation(batch) + rng.random(batch)) / batch
    rates = np.array(keep)[:, None] * (1 / 3 + position * 4 / 3)
    rates = np.minimum(rates, 1.0)
    return np.minimum.accumulate(rates, axis=0).astype(np.float32)


def forced(decide, rates: jax.Array, patches: int, seed: int):
    """``decide`` with confidences replaced, so that a share of the patches ``rates`` [B] stays."""

    def decision(grades):
        inside = jnp.zeros(grades.images, jnp.float32)
        inside = inside.at[grades.image].add(grades.graded.astype(jnp.float32))
        stays = jnp.minimum(rates * patches / jnp.maximum(inside, 1.0), 1.0)
        lot = jax.random.uniform(jax.random.key(seed), grades.confidence.shape)
        chosen = jnp.where(lot < stays[grades.image], 0.0, 1.0 - 1e-3 * lot)
        return decide(grades._replace(confidence=chosen + 0.0 * grades.confidence))

    return decision


def measure(call, seconds: float) -> tuple[float, float]:
    """(wall, cpu) seconds per call, repeated for at least ``seconds``."""
    wall, cpu, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - wall < seconds:
        call()
        calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def memory(lowered) -> int:
    """Bytes of temporaries and results of a program."""
    found = lowered.compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def bench(spec: SegmenterSpec, arrays, keep, size, batch, rounds, seconds, mean_std, seed) -> dict:
    """Runs everything; the result is the JSON object."""
    rng = np.random.default_rng(seed)
    patches = math.prod(-(-side // spec.vit.patch) for side in size)
    how = EvalSpec(mode="whole", crop=size, stride=size, batch_size=batch, **mean_std)
    dense_spec = without_exits(spec)

    def decisions(rates):
        natural = [spec.heads[i].decide for i in spec.exits]
        return [forced(decide, rates[n], patches, n) for n, decide in enumerate(natural)]

    programs = {
        "dense": network(dense_spec).program(bfloat16=FLAGS.bfloat16),
        "pruned": steered(network(spec).program(bfloat16=FLAGS.bfloat16), spec, decisions, _RATES),
    }
    prepared = programs["dense"].prepare(arrays)
    predictors = {name: Predictor(program, how) for name, program in programs.items()}
    images = list(rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8))
    rates = [draw_rates(keep, batch, rng) for _ in range(rounds)]
    alive: list[np.ndarray] = []

    def run(name: str, i: int):
        given = prepared if name == "dense" else prepared | {_RATES: rates[i]}
        return predictors[name].predict(given, images)

    begin = time.perf_counter()
    run("dense", 0)
    compile_dense = time.perf_counter() - begin
    begin = time.perf_counter()
    for i in range(rounds):  # compiles what the rounds need, and counts their tokens
        alive += [one.alive[0] for one in run("pruned", i)]
    compile_pruned = time.perf_counter() - begin
    times = {name: [] for name in programs}
    for i in range(rounds):
        for name in rng.permutation(list(programs)):
            times[name].append(measure(lambda name=name, i=i: run(name, i), seconds))
    cost = {
        "dense": pruned_macs(dense_spec, size, [alive[0][0]]).gmacs_all_heads,
        "pruned": np.mean([pruned_macs(spec, size, n).gmacs_all_heads for n in alive]),
    }
    wall, cpu = (
        {name: np.array(values)[:, column] for name, values in times.items()} for column in (0, 1)
    )
    ratio = float(cost["dense"] / cost["pruned"])
    speedup = {
        name: float(np.median(values["dense"]) / np.median(values["pruned"]))
        for name, values in (("wall", wall), ("cpu", cpu))
    }
    kept = np.mean([n[1:] / n[0] for n in alive], axis=0)
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return {
        "speedup_wall": speedup["wall"],
        "speedup_cpu": speedup["cpu"],
        "flops_ratio": ratio,
        "efficiency_wall": speedup["wall"] / ratio,
        "efficiency_cpu": speedup["cpu"] / ratio,
        "spread_wall": _quartiles(wall["dense"] / wall["pruned"]),
        "spread_cpu": _quartiles(cpu["dense"] / cpu["pruned"]),
        "batch": batch,
        "size": size,
        "kept": [float(share) for share in kept],
        "gmacs": {name: float(value) for name, value in cost.items()},
        "seconds_wall": {name: float(np.median(v)) for name, v in wall.items()},
        "seconds_cpu": {name: float(np.median(v)) for name, v in cpu.items()},
        "rounds": rounds,
        "compile_seconds": {"dense": compile_dense, "pruned": compile_pruned},
        "programs": {"dense": 1, "pruned": programs["pruned"].compiled},
        "peak_memory_mb": {
            "dense": _dense_memory(programs["dense"], prepared, image) / 2**20,
            "pruned": _chain_memory(programs["pruned"], prepared | {_RATES: rates[0]}, image)
            / 2**20,
        },
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "jax": jax.__version__,
    }


def _dense_memory(program: OneProgram, arrays, image) -> int:
    return memory(program._run.lower(arrays, image))


def _chain_memory(program: Chain, arrays, image) -> int:
    """Of the first program and of the last at full capacity, its largest."""
    carry = jax.eval_shape(program._first, arrays, image)
    slots = carry.x.shape[0]
    last = program._last.lower(arrays, carry, slots)
    return max(memory(program._first.lower(arrays, image)), memory(last))


def _quartiles(ratios: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(ratios, (0.25, 0.75))]


def table(found: dict) -> str:
    """The result for people."""
    macs, wall, both = found["gmacs"], found["seconds_wall"], ("dense", "pruned")
    memory_mb = found["peak_memory_mb"]
    rows = [("", *both, "ratio", "efficiency")]
    rows.append(("GMACs", *(f"{macs[n]:.2f}" for n in both), f"{found['flops_ratio']:.3f}", ""))
    for kind in ("wall", "cpu"):
        milliseconds = (f"{1e3 * found[f'seconds_{kind}'][n]:.1f}" for n in both)
        gain = (f"{found[f'{what}_{kind}']:.3f}" for what in ("speedup", "efficiency"))
        rows.append((f"{kind} ms per batch", *milliseconds, *gain))
    rows.append(("images/s", *(f"{found['batch'] / wall[n]:.2f}" for n in both), "", ""))
    rows.append(("memory MB", *(f"{memory_mb[n]:.0f}" for n in both), "", ""))
    return "\n".join(f"{a:18}{b:>11}{c:>11}{d:>9}{e:>12}" for a, b, c, d, e in rows)


def main(_) -> None:
    startup.prepare()
    config = FLAGS.config
    classes = FLAGS.classes or build.class_count(config)
    spec = build.segmenter_spec(config, classes)
    keep = tuple(float(share) for share in FLAGS.keep)
    if not spec.exits:
        raise UserError("no exit is on: set config.method.name=dtop and an exit's threshold")
    if len(keep) != len(spec.exits) or not all(0 < share <= 1 for share in keep):
        raise UserError(
            f"--keep={','.join(FLAGS.keep)}: give {len(spec.exits)} shares between 0 and 1, one "
            f"for each exit of the configuration"
        )
    arrays = model_dir.load(FLAGS.workdir).arrays if FLAGS.workdir else None
    if arrays is None:
        params, stats = draw(*shapes(spec), config.seed)
        arrays = params | stats
    mean_std = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}
    size = tuple(int(n) for n in FLAGS.size) if FLAGS.size else tuple(config.data.crop)
    found = bench(
        spec, arrays, keep, size, FLAGS.batch, FLAGS.rounds, FLAGS.seconds, mean_std, config.seed
    )
    print(f"{size[1]} x {size[0]} pixels, {classes} classes, batch {FLAGS.batch}")
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("batch", 8, "Images per call.", lower_bound=1)
    flags.DEFINE_list("keep", ["0.55", "0.40"], "Mean share still inside after each exit.")
    flags.DEFINE_integer("rounds", 9, "Rounds, each in its own random order.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "Least seconds per measurement.")
    flags.DEFINE_list("size", [], "Height,width in pixels; default: the training crop.")
    flags.DEFINE_integer("classes", None, "Number of classes; default: what the data set has.")
    flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16.")
    flags.DEFINE_string("workdir", "", "Folder of a trained model; default: random weights.")
    cli.run(main)
