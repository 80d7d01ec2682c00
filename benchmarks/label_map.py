"""Labels straight from the token grid beside interpolating every pixel: same labels, what time.

    python -m benchmarks.label_map --classes=150

Smooth random scores on a grid of tokens, at several roughnesses, so that different shares of the
8x8-pixel blocks are mixed. Both forms take turns in random order; medians of wall and CPU time.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxseg import labels
from jaxseg.resize import bilinear_taps, interpolate, resize_bilinear

CLASSES = flags.DEFINE_integer("classes", 150, "number of classes", lower_bound=2)
TOKENS = flags.DEFINE_integer("tokens", 32, "tokens per side; 16 pixels each", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 15, "rounds", lower_bound=1)


def blobs(rng: np.random.Generator, tokens: int, classes: int, cells: int) -> np.ndarray:
    """float32 [1, tokens, tokens, classes]: smooth noise of ``cells`` cells per side."""
    coarse = rng.standard_normal((cells, cells, classes), np.float32)
    return np.asarray(resize_bilinear(jnp.asarray(coarse), (tokens, tokens)))[None]


def timed(call) -> tuple[float, float]:
    """(wall, cpu) milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def main(_) -> None:
    tokens, pixels = TOKENS.value, 16 * TOKENS.value
    axis = labels.axis(tokens, ((pixels, pixels),))
    taps = bilinear_taps(tokens, pixels)
    ours = jax.jit(labels.label_map)
    every = jax.jit(
        lambda scores: interpolate(scores[0], taps, taps).argmax(axis=-1).astype(jnp.uint8)
    )
    rng = np.random.default_rng(0)
    print(f"{tokens}x{tokens} tokens, {pixels}x{pixels} pixels, {CLASSES.value} classes")
    print("mixed %   differing   all pixels: wall, cpu ms   mixed blocks: wall, cpu ms   ratio")
    for cells in (2, 4, 8, 16):
        scores = jnp.asarray(blobs(rng, tokens, CLASSES.value, cells))
        calls = {"all": lambda s=scores: every(s), "mixed": lambda s=scores: ours(s, axis, axis)}
        differ = int((np.asarray(calls["all"]()) != np.asarray(calls["mixed"]())[0]).sum())
        times = {name: [] for name in calls}
        for _ in range(ROUNDS.value):
            for name in rng.permutation(list(calls)):
                times[name].append(timed(calls[name]))
        full, quick = (np.median(times[name], axis=0) for name in ("all", "mixed"))
        blocks = len(axis.first) ** 2
        share = 100 * int(labels.mixed_blocks(scores, axis, axis)[0]) / blocks
        print(
            f"{share:7.1f} {differ:11d} {full[0]:15.2f} {full[1]:9.2f} {quick[0]:17.2f} "
            f"{quick[1]:9.2f} {full[1] / quick[1]:10.1f}"
        )


if __name__ == "__main__":
    app.run(main)
