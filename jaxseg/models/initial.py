"""The numbers a network starts from, by parameter name."""

import re
import zlib
from collections.abc import Mapping

import numpy as np

Shape = tuple[int, ...]


def draw(params: Mapping, stats: Mapping, seed: int) -> tuple[dict, dict]:
    """Fresh float32 arrays for the names and shapes of `jaxseg.models.network.shapes`.

    Each array depends on (seed, its own name) alone, so a new head leaves the others as they were.
    The rules are those of mmsegmentation and of the released DToP and SegViT code, with two
    departures in the ATM decoders: the packed self-attention projection is drawn like the other
    linear layers of its head (there: xavier), and the layers of a decoder do not start as copies.
    """
    auxiliary = _auxiliary(params)
    fresh = {}
    for name, array in params.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        drawn = _start(name, array.shape, _fan_in(name, params), name.startswith(auxiliary), rng)
        fresh[name] = np.asarray(drawn, np.float32)
    running = {n: np.full(a.shape, n.endswith(".var"), np.float32) for n, a in stats.items()}
    return fresh, running


def _start(name: str, shape: Shape, fan_in: int, auxiliary: bool, rng: np.random.Generator):
    kind = name.rsplit(".", 1)[-1]
    if kind == "scale":
        return np.ones(shape)
    if kind == "queries":  # torch's Embedding default
        return rng.standard_normal(shape, np.float32)
    if name == "vit.patch_embed.kernel":  # kaiming, fan in
        return rng.standard_normal(shape, np.float32) * (2.0 / fan_in) ** 0.5
    if "trunk." in name and kind == "kernel":  # kaiming, fan out; depthwise kernels are [k, k, C]
        fan_out = int(np.prod(shape[:2])) * (shape[3] if len(shape) == 4 else 1)
        return rng.standard_normal(shape, np.float32) * (2.0 / fan_out) ** 0.5
    if ".convs." in name:  # kaiming, fan out
        fan_out = fan_in // shape[-2] * shape[-1]
        return rng.standard_normal(shape, np.float32) * (2.0 / fan_out) ** 0.5
    if name.endswith("classify.kernel"):
        return rng.standard_normal(shape, np.float32) * 0.01
    in_decoder = re.search(r"\.decoder\.layers\.|\.decoders\.\d+\.layers\.|\.class_embed\.", name)
    if auxiliary and in_decoder and not re.search(r"\.norm\d", name):
        # DToP's own initialiser never reaches auxiliary heads: they keep torch's Linear default.
        return rng.uniform(-1.0, 1.0, shape) * fan_in**-0.5
    if kind == "bias":
        in_mlp = name.startswith("vit.") and ".mlp." in name
        return rng.standard_normal(shape) * 1e-6 if in_mlp else np.zeros(shape)
    if kind in ("patch_proj", "class_proj"):  # Segmenter's mask transformer
        return rng.standard_normal(shape, np.float32) * fan_in**-0.5
    # torch's trunc_normal_(std=0.02) cuts at +-2, which is 100 sigma: a plain normal.
    return rng.standard_normal(shape, np.float32) * 0.02


def _fan_in(name: str, params: Mapping) -> int:
    """Inputs of the layer that a kernel or bias belongs to."""
    kernel = params.get(name.removesuffix(".bias") + ".kernel", params[name])
    return int(np.prod(kernel.shape[:-1]))


def _auxiliary(params: Mapping) -> tuple[str, ...]:
    """Prefixes of all heads but the last."""
    heads = sorted({int(name.split(".")[1]) for name in params if name.startswith("heads.")})
    return tuple(f"heads.{i}." for i in heads[:-1])
