"""Multiply-accumulates of one forward pass, counted from sizes as the papers count them.

The field's "GFLOPs" are fvcore's: one multiply-add is one, matrix products and convolutions in
full, LayerNorm 5 per value, evaluated BatchNorm 2, bilinear resizing 4 per output value; softmax,
activations and additions are free. Batch 1, one training crop, and both resizes to full size that
mmseg runs (head to crop, crop to image). The dense figures of DToP, SegViT and SETR come out to the
printed digit.

Token counts may be means over a data set only where they enter linearly; attention is quadratic, so
count per image and average the results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, float]  # (layers, tokens inside them, class token included)


@dataclass(frozen=True)
class Macs:
    """MACs by named part. ``a + b`` adds part by part."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __add__(self, other: "Macs") -> "Macs":
        names = self.parts | other.parts
        return Macs({n: self.parts.get(n, 0) + other.parts.get(n, 0) for n in names})


@dataclass(frozen=True)
class ModelMacs:
    """A segmenter: ``heads`` in the order of depth, the last answers; ``resizes`` are its two.

    Papers count dense models with the last head alone and pruned ones, as their tables imply, with
    the auxiliary heads that decide: report both figures.
    """

    backbone: Macs
    heads: tuple[Macs, ...]
    resizes: Macs
    policy: Macs = Macs({})  # the network that grades windows; STEP's figures of CTS include it

    @property
    def gmacs_backbone_and_final_head(self) -> float:
        parts = (self.policy, self.backbone, self.heads[-1], self.resizes)
        return sum(part.total for part in parts) / 1e9

    @property
    def gmacs_all_heads(self) -> float:
        return sum(p.total for p in (self.policy, self.backbone, *self.heads, self.resizes)) / 1e9

    def table(self) -> str:
        """A line per part and both totals, in GMACs."""
        rows = [(f"policy: {name}", macs) for name, macs in self.policy.parts.items()]
        rows += [(f"backbone: {name}", macs) for name, macs in self.backbone.parts.items()]
        for i, head in enumerate(self.heads):
            kind = "final head" if i == len(self.heads) - 1 else f"auxiliary head {i}"
            rows += [(f"{kind}: {name}", macs) for name, macs in head.parts.items()]
        rows += list(self.resizes.parts.items())
        rows += [
            ("total, backbone and final head", self.gmacs_backbone_and_final_head * 1e9),
            ("total, all heads", self.gmacs_all_heads * 1e9),
        ]
        wide = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{wide}}  {macs / 1e9:9.3f}" for name, macs in rows)


def mean(counts: Iterable[ModelMacs]) -> ModelMacs:
    """Part by part over images; all must come from one model."""
    counts = list(counts)

    def average(of_part: Sequence[Macs]) -> Macs:
        return Macs({n: sum(m.parts[n] for m in of_part) / len(counts) for n in of_part[0].parts})

    return ModelMacs(
        average([c.backbone for c in counts]),
        tuple(average(heads) for heads in zip(*(c.heads for c in counts), strict=True)),
        average([c.resizes for c in counts]),
        average([c.policy for c in counts]),
    )


def backbone(
    patches: int,
    width: int,
    spans: Sequence[Span],
    *,
    patch_values: int = 3 * 16 * 16,
    mlp_ratio: int = 4,
    final_norm: bool = False,
) -> Macs:
    """A plain ViT. ``spans`` names the tokens alive in each run of layers; dense is one span."""
    tokens = [alive for layers, alive in spans for _ in range(layers)]
    options = {"patch_values": patch_values, "mlp_ratio": mlp_ratio, "final_norm": final_norm}
    return halves(patches, width, tokens, tokens, **options)


def halves(
    patches: int,
    width: int,
    mixed: Sequence[float],
    transformed: Sequence[float],
    *,
    patch_values: int = 3 * 16 * 16,
    mlp_ratio: int = 4,
    final_norm: bool = False,
) -> Macs:
    """A plain ViT whose attention and MLPs work on these tokens, layer by layer."""
    attended, all_mixed, all_transformed = (
        sum(float(n) ** 2 for n in mixed),  # no 32-bit integers
        width * sum(map(float, mixed)),
        width * sum(map(float, transformed)),
    )
    last = 5 * transformed[-1] * width if final_norm else 0
    return Macs(
        {
            "patch embedding": patches * patch_values * width,
            "qkv and output": 4 * width * all_mixed,
            "attention": 2 * width * attended,
            "mlp": 2 * mlp_ratio * width * all_transformed,
            "layer norms": 5 * (all_mixed + all_transformed) + last,
        }
    )


def atm_head(tokens: float, token_width: int, width: int, classes: int, layers: int) -> Macs:
    """DToP's head: one level, class embedding to present / absent."""
    return Macs(
        _atm_level(tokens, token_width, width, classes, layers)
        | {"class embedding": 2 * classes * width}
    )


def cascade_head(
    tokens: Sequence[float],
    token_width: int,
    width: int,
    classes: int,
    layers: int,
    size: tuple[int, int],
) -> Macs:
    """SegViT v1: a level per entry of ``tokens``, and queries mixed per pixel of ``size``."""
    head = Macs({})
    for count in tokens:
        head += Macs(_atm_level(count, token_width, width, classes, layers))
        head += Macs({"class embedding": classes * (classes + 1) * width})
    return head + Macs({"mixing of queries": classes**2 * size[0] * size[1]})


def _atm_level(tokens, token_width, width, classes, layers) -> dict[str, float]:
    # Per layer: self-attention of the classes 4, cross-attention 2 on their side, MLP 8 x width.
    queries = 14 * classes * width**2 + 2 * classes**2 * width + 15 * classes * width
    cross = 2 * tokens * width**2 + 2 * classes * tokens * width
    return {
        "input projection": tokens * width * (token_width + 5),
        "decoder": layers * (queries + cross),
    }


def conv_head(
    tokens: float,
    token_width: int,
    channels: int,
    classes: int,
    *,
    convs: int = 1,
    kernel: int = 1,
    up_scale: int = 1,
    norm: bool = True,
) -> Macs:
    """SETR and FCN: [LayerNorm], ``convs`` x (convolution, BatchNorm, resize), 1x1 classifier."""
    parts = {"layer norm": 5 * tokens * token_width if norm else 0}
    parts |= {"convolutions": 0, "inner resizes": 0}
    for i in range(convs):
        width_in = channels if i else token_width
        parts["convolutions"] += tokens * channels * (kernel**2 * width_in + 2)
        tokens *= up_scale**2
        parts["inner resizes"] += 4 * tokens * channels if up_scale > 1 else 0
    return Macs(parts | {"classifier": tokens * channels * classes})


def resizes(classes: int, size: tuple[int, int], count: int = 2) -> Macs:
    """Bilinear resizes of the scores to ``size`` (height, width)."""
    return Macs({"resizes": count * 4 * classes * size[0] * size[1]})
