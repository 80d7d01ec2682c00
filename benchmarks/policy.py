"""EfficientNet-Lite0, the trunk of the policies, in the forms that a CPU can run it in.

    python -m benchmarks.policy --sizes=480x352,960x720,1024x1024 --rounds=7

Random pixels and weights, float32. "conv": XLA's grouped convolutions; "shifted": products shifted
and added, whole maps; "stripes 2^n": ours, a block walks over stripes of 2^n values. All take turns
in random order; medians of wall and CPU milliseconds per image, quartiles of the latter.
"""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxseg.models import efficientnet
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes
from jaxseg.models.policy import PolicySpec
from jaxseg.tools.bench import measure

SIZES = flags.DEFINE_list("sizes", ["480x352", "1024x1024"], "widths x heights in pixels")
BATCH = flags.DEFINE_integer("batch", 1, "images per call", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "rounds", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 0.3, "least seconds per measurement")


@contextlib.contextmanager
def as_form(name: str):
    """What is traced meanwhile takes this form."""
    stripe, on_cpu = efficientnet.STRIPE, efficientnet._on_cpu
    if name == "conv":
        efficientnet._on_cpu = lambda: False
    elif name == "shifted":
        efficientnet.STRIPE = 2**60
    else:
        efficientnet.STRIPE = 2 ** int(name.removeprefix("stripes 2^"))
    try:
        yield
    finally:
        efficientnet.STRIPE, efficientnet._on_cpu = stripe, on_cpu


def finished(program, images):
    return jax.block_until_ready(program(images))


def main(_) -> None:
    rng = np.random.default_rng(0)
    net = network(PolicySpec(sides=(2, 4, 8, 16)))
    params, stats = draw(*shapes(net.spec), 0)
    found = {"batch": BATCH.value, "jax": jax.__version__}
    for size in SIZES.value:
        width, height = (int(side) for side in size.split("x"))
        images = jnp.asarray(rng.uniform(-1, 1, (BATCH.value, height, width, 3)), jnp.float32)
        calls = {}
        for name in ("conv", "shifted", "stripes 2^20", "stripes 2^21", "stripes 2^22"):
            with as_form(name):
                program = jax.jit(lambda images: net.bind(params, stats)(images))
                calls[name] = functools.partial(finished, program.lower(images).compile(), images)
        times = {name: [] for name in calls}
        for _ in range(ROUNDS.value):
            for name in rng.permutation(list(calls)):
                times[name].append(measure(calls[name], SECONDS.value))
        print(f"{size}, batch {BATCH.value}; ms per image: wall, cpu (quartiles)")
        found[size] = {}
        for name, each in times.items():
            wall, cpu = 1e3 / BATCH.value * np.array(each).T
            low, middle, high = np.quantile(cpu, (0.25, 0.5, 0.75))
            found[size][name] = {"wall": float(np.median(wall)), "cpu": [low, middle, high]}
            print(f"  {name:14}{np.median(wall):8.1f}{middle:8.1f} ({low:.1f}-{high:.1f})")
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
