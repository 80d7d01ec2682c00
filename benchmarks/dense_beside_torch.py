"""The dense ViT beside the same ViT in plain PyTorch: same weights, same machine, same run.

    pip install "torch==2.13.0"
    python -m benchmarks.dense_beside_torch --variant=Ti --height=352 --width=480 --batch=8

First shows that tokens and gradients agree, then measures a forward pass and a training step (the
gradients of all parameters for the sum of squares of the last tap; no optimizer) on the CPU. Rounds
visit the four measurements in random order, so that no load of the machine falls on one alone.
"wall" is what a user waits for. "cpu" is the time of all threads, which a neighbour disturbs less;
PyTorch's spin while they wait for each other, so only on one core (``taskset -c 0``) is it the bare
work. Prints a table and, as the last line, one JSON object; a ratio is torch / jax of the medians:
above 1, jax is faster.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from absl import app, flags
from torch import nn

from jaxseg.models.initial import draw
from jaxseg.models.network import Arrays, network, shapes
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViTSpec

VARIANT = flags.DEFINE_enum("variant", "Ti", list(VARIANTS), "width, depth and heads of the ViT")
HEIGHT = flags.DEFINE_integer("height", 352, "image height in pixels, a multiple of 16")
WIDTH = flags.DEFINE_integer("width", 480, "image width in pixels, a multiple of 16")
BATCH = flags.DEFINE_integer("batch", 8, "images per call", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 9, "rounds, each in its own random order", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "least seconds per measurement, if undisturbed")

_TOLERANCE = 1e-4  # of the largest magnitude of the array


class TorchBlock(nn.Module):
    """Pre-norm attention and MLP; the attention kernel is the fused one of PyTorch."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # exact GELU is the default


class TorchViT(nn.Module):
    """Patches, position embedding, blocks; answers with the output of the last block."""

    def __init__(self, spec: ViTSpec):
        super().__init__()
        self.patch = spec.patch
        self.patch_embed = nn.Linear(spec.patch * spec.patch * 3, spec.width)
        self.pos_embed = nn.Parameter(torch.empty(*spec.grid, spec.width))
        hidden = spec.width * spec.mlp_ratio
        self.blocks = nn.Sequential(
            *(TorchBlock(spec.width, spec.heads, hidden) for _ in range(spec.depth))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3] -> [B, T, D]."""
        batch, height, width, _ = images.shape
        rows, columns = height // self.patch, width // self.patch
        x = images.reshape(batch, rows, self.patch, columns, self.patch, 3).transpose(2, 3)
        x = self.patch_embed(x.reshape(batch, rows * columns, -1))
        return self.blocks(x + self.pos_embed.reshape(1, rows * columns, -1))


def torch_name(name: str) -> str:
    """Name in `TorchViT` of the jaxseg parameter ``name``."""
    for ours, theirs in (
        (".attn.", "."),
        (".mlp.", "."),
        (".kernel", ".weight"),
        (".scale", ".weight"),
    ):
        name = name.replace(ours, theirs)
    return name.removeprefix("vit.")


def torch_layout(name: str, value: np.ndarray) -> np.ndarray:
    """A jaxseg kernel is [in, out], a PyTorch weight [out, in]; all else is alike."""
    return np.ascontiguousarray(value.T if name.endswith(".kernel") else value)


def jax_calls(spec: ViTSpec, params: Arrays, images: np.ndarray) -> dict[str, Callable]:
    """``forward`` -> tokens and ``step`` -> gradients by jaxseg name, both finished on return."""
    segmenter = SegmenterSpec(spec, heads=())
    net, last = network(segmenter), spec.depth - 1
    params, images = jax.device_put((params, images))

    def tokens(params, images):
        return net.bind(params, {}).vit(images, (last,))[last]

    forward = jax.jit(tokens)
    step = jax.jit(jax.grad(lambda params, images: jnp.square(tokens(params, images)).sum()))
    return {
        "forward": lambda: jax.block_until_ready(forward(params, images)),
        "step": lambda: jax.block_until_ready(step(params, images)),
    }


def torch_calls(spec: ViTSpec, params: Arrays, images: np.ndarray) -> dict[str, Callable]:
    """As `jax_calls`; gradients under PyTorch's names."""
    model = TorchViT(spec)
    model.load_state_dict(
        {torch_name(n): torch.from_numpy(torch_layout(n, v)) for n, v in params.items()}
    )
    names, weights = zip(*model.named_parameters(), strict=True)
    images = torch.from_numpy(images)

    def forward():
        with torch.inference_mode():
            return model(images)

    def step():
        loss = model(images).square().sum()
        return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))

    return {"forward": forward, "step": step}


def check(ours: dict[str, Callable], theirs: dict[str, Callable]) -> dict[str, float]:
    """Largest differences of tokens and gradients, relative to each array's largest magnitude."""

    def difference(a, b) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    tokens = difference(np.asarray(ours["forward"]()), theirs["forward"]().numpy())
    reference = {name: value.numpy() for name, value in theirs["step"]().items()}
    gradients = max(
        difference(torch_layout(name, np.asarray(value)), reference[torch_name(name)])
        for name, value in ours["step"]().items()
    )
    found = {"tokens": tokens, "gradients": gradients}
    print("largest relative difference: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    if not max(found.values()) < _TOLERANCE:
        raise SystemExit(f"error: jaxseg and PyTorch differ by more than {_TOLERANCE}: no timing")
    return found


def measure(calls: dict[tuple, Callable], rounds: int, seconds: float) -> dict[tuple, np.ndarray]:
    """(wall, cpu) seconds per call: float64[rounds, 2] for each of ``calls``."""

    def clocks() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    repetitions, found = {}, {cell: [] for cell in calls}
    for cell, call in calls.items():
        call()
        start = clocks()
        call()
        repetitions[cell] = math.ceil(seconds / (clocks() - start)[0])
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for i in rng.permutation(len(calls)):
            cell, call = list(calls.items())[i]
            call()  # memory and caches are still those of another measurement
            start = clocks()
            for _ in range(repetitions[cell]):
                call()
            found[cell].append((clocks() - start) / repetitions[cell])
    return {cell: np.array(times) for cell, times in found.items()}


def main(_) -> None:
    size = (HEIGHT.value, WIDTH.value)
    if size[0] % 16 or size[1] % 16:
        raise SystemExit(f"error: --height={size[0]} --width={size[1]}: not multiples of 16")
    jax.config.update("jax_platforms", "cpu")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    spec = ViTSpec(*VARIANTS[VARIANT.value], grid=(size[0] // 16, size[1] // 16))
    rng = np.random.default_rng(0)
    params, _ = draw(*shapes(SegmenterSpec(spec, heads=())), seed=0)
    # Fresh biases are 0 and scales 1: move them, or the comparison could not tell them apart.
    params = {
        name: value + 0.02 * rng.standard_normal(value.shape, np.float32)
        for name, value in params.items()
    }
    images = rng.standard_normal((BATCH.value, *size, 3), np.float32)

    engines = {"jax": jax_calls(spec, params, images), "torch": torch_calls(spec, params, images)}
    differences = check(engines["jax"], engines["torch"])
    kinds = ("forward", "step")
    cells = {(kind, name): calls[kind] for kind in kinds for name, calls in engines.items()}
    times = measure(cells, ROUNDS.value, SECONDS.value)

    print(f"ViT-{VARIANT.value}, {size[0]} x {size[1]}, batch {BATCH.value}: seconds per call")
    print("                     median      min       q1       q3")
    for (kind, engine), seconds in times.items():
        for clock, column in zip(("wall", "cpu"), seconds.T, strict=True):
            median, low, q1, q3 = np.percentile(column, (50, 0, 25, 75))
            print(f"{kind:8} {engine:5} {clock:4} {median:8.4f} {low:8.4f} {q1:8.4f} {q3:8.4f}")
    result = {}
    for kind in kinds:
        ours, theirs = np.median(times[kind, "jax"], 0), np.median(times[kind, "torch"], 0)
        result[kind] = {"jax_seconds": ours[0], "torch_seconds": theirs[0]}
        ratios = zip(("ratio_wall", "ratio_cpu"), theirs / ours, strict=True)
        result[kind] |= {name: round(value, 3) for name, value in ratios}
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    result |= {"variant": VARIANT.value, "size": size, "batch": BATCH.value, "cores": cores}
    result |= {"rounds": ROUNDS.value, "differences": differences, "versions": versions}
    print(json.dumps(result | {"python": platform.python_version()}))


if __name__ == "__main__":
    app.run(main)
