r"""Dense against early exits, end to end, at forced keep rates: what is saved and what it takes.

    python -m jaxseg.tools.bench --config=configs/dtop_segvit_vitti_camvid.py --classes=11 \
        --batch=8 --keep=0.55,0.40 --rounds=9

From uint8 images in memory to uint8 label maps on the host, random pixels, at the training crop.
The weights are random unless --workdir names a trained model: how many tokens leave is forced, so
that figures of different models and machines compare. ``--keep`` names the mean share of an image's
tokens that is still inside after each exit; every image of every round draws its own around it.
Which tokens leave is random; grading, selection, packing, heads and label map are all run. The
best tokens of each class stay as context on top of it, so that counts come from what really ran.
Where patches share tokens ``--merge`` names the mean share of windows that is merged, for each side
that the configuration merges, from the smallest; the policy is run and part of what is timed.

Dense and pruned each take the images in one batch or one by one, whichever is faster for them
(``dense_way``, ``pruned_way``). Rounds measure both in random order. ``wall`` is what a user waits
for; ``cpu``, the time of all threads, is the steadier figure on a shared machine. Prints a table,
then one JSON object:
``speedup`` is the median over rounds of dense / pruned time, ``flops_ratio`` the ratio of the mean
MACs (dense: last head alone; pruned: with the heads that decide, on the tokens that were inside),
``efficiency`` the median of speed-up / FLOPs ratio within a round, 1 where time falls as MACs do.
``spread`` holds quartiles over rounds. ``compile_seconds`` and ``programs`` are those of both ways.
Memory is XLA's own figure for the way that was taken: arguments, temporaries and results of the
largest program.
"""

import functools
import json
import math
import platform
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxseg import build, cli, model_arrays, model_dir, startup
from jaxseg.errors import UserError
from jaxseg.inference import EvalSpec, Predictor
from jaxseg.models.initial import draw
from jaxseg.models.macs import pruned_macs
from jaxseg.models.network import network, shapes, steered
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.programs import Chain, OneProgram
from jaxseg.tools.forced import draw_rates, forced_spec

FLAGS = flags.FLAGS
_RATES = "bench.keep"  # travels beside the parameters, so that a new draw compiles nothing


def measure(call, seconds: float) -> tuple[float, float]:
    """(wall, cpu) seconds per call, repeated for at least ``seconds``."""
    wall, cpu, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - wall < seconds:
        call()
        calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def memory(lowered) -> int:
    """Bytes of arguments (parameters too), temporaries and results of a program."""
    found = lowered.compile().memory_analysis()
    own = found.argument_size_in_bytes - found.alias_size_in_bytes
    return own + found.temp_size_in_bytes + found.output_size_in_bytes


def bench(
    spec: SegmenterSpec,
    arrays: dict,
    keep: tuple[float, ...],
    how: EvalSpec,
    *,
    merge: tuple[float, ...] = (),
    rounds: int,
    seconds: float,
    seed: int,
    bfloat16: bool,
) -> dict:
    """Measures images of ``how.crop``, ``how.batch_size`` at once; returns the JSON object."""
    size, batch = how.crop, how.batch_size
    rng = np.random.default_rng(seed)
    dense_spec = spec.dense()

    programs = {
        "dense": network(dense_spec).program(bfloat16=bfloat16),
        "pruned": steered(
            network(spec).program(bfloat16=bfloat16),
            functools.partial(forced_spec, spec),
            _RATES,
        ),
    }
    prepared = programs["dense"].prepare(arrays)
    images = list(rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8))
    drawn = [draw_rates((share,), rounds, batch, rng) for share in merge]
    rates = np.concatenate([*drawn, draw_rates(keep, rounds, batch, rng)], axis=1)
    alive: list[list[np.ndarray]] = []  # per round and image

    calls = {
        "dense": ways_of(programs["dense"], how, images, lambda *_: prepared),
        "pruned": ways_of(
            programs["pruned"], how, images, lambda i, of: prepared | {_RATES: rates[i][:, of]}
        ),
    }
    way, compiling = {}, {}
    for name, ways in calls.items():
        way[name], compiling[name] = faster(ways, programs[name], seconds)

    def run(name: str, i: int):
        return calls[name][way[name]](i)

    for i in range(rounds):  # compiles what the rounds need, and counts their tokens
        found, more = compiled(lambda i=i: run("pruned", i), programs["pruned"])
        compiling["pruned"] += more
        alive.append([one.alive[0] for one in found])
    times = {name: [] for name in programs}
    for i in range(rounds):
        for name in rng.permutation(list(programs)):
            times[name].append(measure(lambda name=name, i=i: run(name, i), seconds))
    patches = math.prod(-(-side // spec.vit.patch) for side in size)
    dense_tokens = patches + spec.vit.class_token
    dense_gmacs = pruned_macs(dense_spec, size, [dense_tokens]).gmacs_all_heads
    gmacs = np.array(
        [np.mean([pruned_macs(spec, size, n).gmacs_all_heads for n in each]) for each in alive]
    )
    gain = {}
    for column, clock in enumerate(("wall", "cpu")):
        of_round = {name: np.array(values)[:, column] for name, values in times.items()}
        gain |= gains(clock, of_round["dense"], of_round["pruned"], dense_gmacs / gmacs)
    kept = np.mean([n[1:] / n[0] for each in alive for n in each], axis=0)
    taken = {name: batch if way[name] == "one batch" else 1 for name in programs}
    inputs = {n: jax.ShapeDtypeStruct((b, *size, 3), jnp.float32) for n, b in taken.items()}
    return gain | {
        "flops_ratio": float(dense_gmacs / gmacs.mean()),
        "batch": batch,
        "size": size,
        "tokens_after_merging": float(np.mean([n[0] for each in alive for n in each])),
        "kept": [float(share) for share in kept],
        "gmacs": {"dense": float(dense_gmacs), "pruned": float(gmacs.mean())},
        "rounds": rounds,
        "compile_seconds": compiling,
        "dense_way": way["dense"],
        "pruned_way": way["pruned"],
        "programs": {name: program.compiled for name, program in programs.items()},
        "peak_memory_mb": {
            "dense": _dense_memory(programs["dense"], prepared, inputs["dense"]) / 2**20,
            "pruned": _chain_memory(
                programs["pruned"],
                prepared | {_RATES: rates[0][:, : taken["pruned"]]},
                inputs["pruned"],
            )
            / 2**20,
        },
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "jax": jax.__version__,
    }


def compiled(call, program):
    """What ``call`` returns, and seconds of compiling: those of a first call beyond a second's."""
    before, begin = program.compiled, time.perf_counter()
    found, first = call(), time.perf_counter() - begin
    if program.compiled == before:
        return found, 0.0
    return found, max(0.0, first - measure(call, 0.0)[0])


def ways_of(program, how: EvalSpec, images: list[np.ndarray], arrays) -> dict:
    """Calls by round for all images: in one batch, or one after the other, whose activations stay
    in a CPU's caches. ``arrays``: (round, which images) -> those of the program."""
    alone, together = Predictor(program, replace(how, batch_size=1)), Predictor(program, how)
    everyone = slice(0, len(images))

    def one_by_one(i: int):
        return [
            alone.predict(arrays(i, slice(j, j + 1)), [image])[0] for j, image in enumerate(images)
        ]

    return {
        "one batch": lambda i: together.predict(arrays(i, everyone), images),
        "one by one": one_by_one,
    }


def faster(ways: dict, program, seconds: float) -> tuple[str, float]:
    """The way that takes less time in the first round, and seconds of compiling both."""
    compiling = sum(compiled(lambda call=call: call(0), program)[1] for call in ways.values())
    return min(ways, key=lambda name: measure(lambda: ways[name](0), seconds)[0]), compiling


def gains(clock: str, dense: np.ndarray, pruned: np.ndarray, flops_ratio: np.ndarray) -> dict:
    """Figures of one clock from seconds and FLOPs ratios per round.

    Rounds differ in how many tokens leave: each is compared with itself, then the median is taken.
    """
    ratio = dense / pruned
    return {
        f"speedup_{clock}": float(np.median(ratio)),
        f"efficiency_{clock}": float(np.median(ratio / flops_ratio)),
        f"spread_{clock}": [float(q) for q in np.quantile(ratio, (0.25, 0.75))],
        f"efficiency_spread_{clock}": [
            float(q) for q in np.quantile(ratio / flops_ratio, (0.25, 0.75))
        ],
        f"seconds_{clock}": {"dense": float(np.median(dense)), "pruned": float(np.median(pruned))},
    }


def _dense_memory(program: OneProgram, arrays, image) -> int:
    return memory(program._run.lower(arrays, image))


def _chain_memory(program: Chain, arrays, image) -> int:
    """The largest of its programs, each at full capacity."""
    found = [program._first.lower(arrays, image)]
    carry = jax.eval_shape(program._first, arrays, image)
    for number in program._packed_exits:
        at = number, carry.x.shape[0]
        found.append(program._middle.lower(arrays, carry, *at))
        carry = jax.eval_shape(lambda *given, at=at: program._middle(*given, *at), arrays, carry)
    found.append(program._last.lower(arrays, carry, carry.x.shape[0]))
    return max(map(memory, found))


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


def _numbers(flag: str, kind: type) -> tuple:
    try:
        return tuple(kind(text) for text in FLAGS[flag].value)
    except ValueError:
        raise UserError(f"--{flag}={','.join(FLAGS[flag].value)}: give numbers") from None


def _shares(flag: str, count: int, what: str) -> tuple[float, ...]:
    found = _numbers(flag, float)
    if len(found) != count or not all(0 < share <= 1 for share in found):
        raise UserError(
            f"--{flag}={','.join(FLAGS[flag].value)}: give {count} shares between 0 and 1, one for "
            f"each {what}"
        )
    return found


def main(_) -> None:
    startup.prepare()
    config = FLAGS.config
    stored = model_dir.load(FLAGS.workdir) if FLAGS.workdir else None
    classes = FLAGS.classes or (len(stored.classes) if stored else build.class_count(config))
    model_arrays.no_oracle(config)
    spec = build.segmenter_spec(config, classes)
    if not spec.adaptive:
        raise UserError(
            "the configuration is dense: set config.method.name=dtop and an exit's threshold, or "
            "config.method.merge"
        )
    if isinstance(spec, SparseSpec):
        raise UserError(
            f"config.method.name={config.method.name!r} chooses tokens before or inside blocks: "
            f"python -m benchmarks.selection measures those"
        )
    if config.method.share:
        raise UserError("config.method.share lets a fixed share leave, so that nothing is forced")
    sides = spec.merge.decide.sides if spec.merge else ()
    merge = _shares("merge", len(sides), f"side that is merged ({sides})")
    keep = _shares("keep", len(spec.exits), "exit of the configuration") if spec.exits else ()
    size = _numbers("size", int) or tuple(config.data.crop)
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"--size={','.join(FLAGS.size)}: give HEIGHT,WIDTH in pixels")
    params, stats = draw(*shapes(spec), config.seed)
    arrays = params | stats
    if stored:  # a policy stays random: its rates are forced
        arrays |= model_arrays.arrays_for(stored, config, replace(spec, merge=None))
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    batch = FLAGS.batch
    found = bench(
        spec,
        arrays,
        keep,
        EvalSpec(mode="whole", crop=size, stride=size, batch_size=batch, mean=mean, std=std),
        merge=merge,
        rounds=FLAGS.rounds,
        seconds=FLAGS.seconds,
        seed=config.seed,
        bfloat16=config.model.bfloat16,
    )
    print(f"{size[1]} x {size[0]} pixels, {classes} classes, batch {batch}")
    print(f"dense: {found['dense_way']}, pruned: {found['pruned_way']}")
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("batch", 8, "Images per call.", lower_bound=1)
    flags.DEFINE_list("merge", [], "Mean share of windows merged, for each side.")
    flags.DEFINE_list("keep", ["0.55", "0.40"], "Mean share still inside after each exit, if any.")
    flags.DEFINE_integer("rounds", 9, "Rounds, each in its own random order.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "Least seconds per measurement.")
    flags.DEFINE_list("size", [], "HEIGHT,WIDTH in pixels; default: the training crop.")
    flags.DEFINE_integer("classes", None, "Number of classes; default: what the data set has.")
    flags.DEFINE_string("workdir", "", "Folder of a trained model; default: random weights.")
    cli.run(main)
