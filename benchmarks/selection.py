"""Methods that choose tokens before or inside blocks, beside the dense model, at equal keep rates.

    python -m benchmarks.selection --config=configs/segvit_vitti_camvid.py --classes=11 --rounds=9

From uint8 images in memory to uint8 label maps on the host, random pixels and weights, at the
training crop. Of the patches 0.7 go through layers 4 to 6 (Evo-ViT: 5 and 6), 0.49 through 7 to 9,
0.343 through 10 to 12. Where a method's numbers depend on the image (SViT, ATS) they are forced to
those on average, spread as in `jaxseg.tools.bench`; gates, class attention and selection are run
all the same. Rounds measure all in random order; ``efficiency`` is the median of
(dense / method time) / (dense / method MACs) within a round, of the CPU time of all threads and of
wall time. Dense takes the images in one batch or one by one, whichever is faster.
"""

import functools
import json
from dataclasses import dataclass

import jax
import numpy as np
from absl import flags

from jaxseg import build, cli, startup
from jaxseg.bypass import Choice, Cut, Look
from jaxseg.inference import EvalSpec, Predictor
from jaxseg.methods import METHODS
from jaxseg.models.initial import draw
from jaxseg.models.macs import dense_macs, pruned_macs
from jaxseg.models.network import network, shapes
from jaxseg.models.sparse import SparseSpec
from jaxseg.tools.bench import faster, gains, measure, ways_of

FLAGS = flags.FLAGS
KEEP = (0.7, 0.49, 0.343)
EACH = (0.7,) * 3 + (0.49,) * 3 + (0.343,) * 3
GIVEN = {
    "svit": {"keep": EACH},
    "svit static": {"keep": EACH, "selection": "static"},
    "dynamicvit": {"keep": KEEP},
    "evit": {"keep": (0.7,) * 3},
    "ats": {"keep": KEEP},
    "evovit": {"keep": EACH[1:]},
}


@dataclass(frozen=True)
class Forced:
    """``method`` decides, and then a share of the patches goes on that is random per image."""

    method: object

    def __getattr__(self, name: str):
        return getattr(self.method, name)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return self.method.cuts

    def choose(self, gates, look: Look) -> Choice:
        choice = self.method.choose(gates, look)
        mean = self.method.keep[look.number]
        reach = min(2 / 3 * mean, 1 - mean)
        keys = jax.vmap(jax.random.key)(look.carry.noise)
        place = jax.vmap(jax.random.uniform)(keys)
        lots = jax.vmap(lambda key: jax.random.uniform(key, look.inside.shape[1:]))(keys)
        chosen = lots < (mean + (2 * place - 1) * reach)[:, None]
        return choice._replace(chosen=look.patch & (chosen | (choice.chosen & (lots > 2.0))))


def main(_) -> None:
    startup.prepare()
    config, batch = FLAGS.config, FLAGS.batch
    classes = FLAGS.classes or build.class_count(config)
    size = tuple(config.data.crop)
    how = EvalSpec(mode="whole", crop=size, stride=size, batch_size=batch)
    dense = build.segmenter_spec(config, classes).dense()
    rng = np.random.default_rng(config.seed)
    names = [name for name in GIVEN if not FLAGS.only or name in FLAGS.only]
    specs = {}
    for name in names:
        method = METHODS[name.split()[0]](**GIVEN[name])
        method = method if method.fixed_counts else Forced(method)
        specs[name] = SparseSpec(dense.vit, dense.heads, method=method)
    rounds = [
        list(rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)) for _ in range(FLAGS.rounds)
    ]
    program = network(dense).program()
    params, stats = draw(*shapes(dense), config.seed)
    prepared = {"dense": program.prepare(params | stats)}
    ways = [ways_of(program, how, images, lambda *_: prepared["dense"]) for images in rounds]
    way, _ = faster(ways[0], program, FLAGS.seconds)
    calls = {"dense": [functools.partial(each[way], 0) for each in ways]}
    gmacs = {"dense": np.full(len(rounds), dense_macs(dense, size).gmacs_backbone_and_final_head)}
    for name, spec in specs.items():
        predictor = Predictor(network(spec).program(), how)
        params, stats = draw(*shapes(spec), config.seed)
        arrays = prepared[name] = predictor.program.prepare(params | stats)
        alive = [[p.alive[0] for p in predictor.predict(arrays, images)] for images in rounds]
        gmacs[name] = np.array(
            [np.mean([pruned_macs(spec, size, n).gmacs_all_heads for n in each]) for each in alive]
        )
        calls[name] = [
            lambda predictor=predictor, arrays=arrays, images=images: predictor.predict(
                arrays, images
            )
            for images in rounds
        ]
    times = {name: [] for name in calls}
    for i in range(len(rounds)):
        for name in rng.permutation(list(calls)):
            times[name].append(measure(calls[name][i], FLAGS.seconds))
    found = {"dense_way": way, "batch": batch, "size": size, "jax": jax.__version__}
    print(f"dense: {way}, {gmacs['dense'][0]:.3f} GMACs")
    for name in names:
        ratio = gmacs["dense"] / gmacs[name]
        gain = {"gmacs": float(gmacs[name].mean()), "flops_ratio": float(ratio.mean())}
        for column, clock in enumerate(("wall", "cpu")):
            pair = (np.array(times[each])[:, column] for each in ("dense", name))
            gain |= gains(clock, *pair, ratio)
        found[name] = gain
        print(
            f"{name:13} {gain['gmacs']:.3f} GMACs, {gain['flops_ratio']:.3f} times fewer; speed-up "
            f"{gain['speedup_cpu']:.3f} cpu, {gain['speedup_wall']:.3f} wall; efficiency "
            f"{gain['efficiency_cpu']:.3f} cpu, {gain['efficiency_wall']:.3f} wall"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("batch", 8, "Images per call.", lower_bound=1)
    flags.DEFINE_integer("rounds", 9, "Rounds, each with its own images.", lower_bound=1)
    flags.DEFINE_float("seconds", 0.5, "Least seconds per measurement.")
    flags.DEFINE_integer("classes", None, "Number of classes; default: what the data set has.")
    flags.DEFINE_list("only", [], "Some of the methods instead of all.")
    cli.run(main)
