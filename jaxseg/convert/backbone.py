"""ViT weights of timm (and plain DeiT), mmsegmentation and AugReg (the original JAX ViT)."""

import math
import re
from collections.abc import Mapping

import numpy as np

from jaxseg.convert.rules import Arrays, Rule, convert, copy, ignore, linear, norm
from jaxseg.errors import UserError
from jaxseg.models.vit import ViTSpec
from jaxseg.resize import resize_position_embedding

CLASSIFIER = "classifier of the pre-training"
UNUSED_NORM = "final norm that this model does not have"


def timm_rules(final_norm: bool) -> tuple[Rule, ...]:
    """timm's VisionTransformer."""
    block, ours = r"blocks\.(\d+)\.", r"vit.blocks.\1."
    return (
        *_stem(r"patch_embed\.proj"),
        *norm(block + "norm1", ours + "norm1"),
        *linear(block + r"attn\.qkv", ours + "attn.qkv"),
        *linear(block + r"attn\.proj", ours + "attn.out"),
        *norm(block + "norm2", ours + "norm2"),
        *linear(block + r"mlp\.fc1", ours + "mlp.fc1"),
        *linear(block + r"mlp\.fc2", ours + "mlp.fc2"),
        *(norm("norm", "vit.norm") if final_norm else (ignore(r"norm\..*", UNUSED_NORM),)),
        ignore(r"(head|fc_norm|pre_logits)\..*", CLASSIFIER),
    )


def mmseg_rules(final_norm: bool) -> tuple[Rule, ...]:
    """mmsegmentation's VisionTransformer, without the "backbone." prefix."""
    block, ours = r"layers\.(\d+)\.", r"vit.blocks.\1."
    return (
        *_stem(r"patch_embed\.projection"),
        *norm(block + "ln1", ours + "norm1"),
        Rule(block + r"attn\.attn\.in_proj_weight", (ours + "attn.qkv.kernel",), lambda x: (x.T,)),
        copy(block + r"attn\.attn\.in_proj_bias", ours + "attn.qkv.bias"),
        *linear(block + r"attn\.attn\.out_proj", ours + "attn.out"),
        *norm(block + "ln2", ours + "norm2"),
        *linear(block + r"ffn\.layers\.0\.0", ours + "mlp.fc1"),
        *linear(block + r"ffn\.layers\.1", ours + "mlp.fc2"),
        *(norm("ln1", "vit.norm") if final_norm else (ignore(r"ln1\..*", UNUSED_NORM),)),
    )


def augreg_rules(final_norm: bool) -> tuple[Rule, ...]:
    """The original JAX ViT's .npz; `_joined_attention` has packed query, key and value before."""
    block, ours = r"Transformer/encoderblock_(\d+)/", r"vit.blocks.\1."

    def dense(source, target):
        return copy(source + "/kernel", target + ".kernel"), copy(
            source + "/bias", target + ".bias"
        )

    def scale(source, target):
        return copy(source + "/scale", target + ".scale"), copy(source + "/bias", target + ".bias")

    attention = block + "MultiHeadDotProductAttention_1/"
    last = "Transformer/encoder_norm"
    return (
        copy("pos_embed", "vit.pos_embed"),
        copy("class_token", "vit.class_token"),
        Rule(
            "embedding/kernel",
            ("vit.patch_embed.kernel",),
            lambda x: (x.reshape(-1, x.shape[-1]),),
        ),
        copy("embedding/bias", "vit.patch_embed.bias"),
        *scale(block + "LayerNorm_0", ours + "norm1"),
        *dense(attention + "qkv", ours + "attn.qkv"),
        Rule(
            attention + "out/kernel",
            (ours + "attn.out.kernel",),
            lambda x: (x.reshape(-1, x.shape[-1]),),
        ),
        copy(attention + "out/bias", ours + "attn.out.bias"),
        *scale(block + "LayerNorm_2", ours + "norm2"),
        *dense(block + "MlpBlock_3/Dense_0", ours + "mlp.fc1"),
        *dense(block + "MlpBlock_3/Dense_1", ours + "mlp.fc2"),
        *(scale(last, "vit.norm") if final_norm else (ignore(last + "/.*", UNUSED_NORM),)),
        ignore("(head|pre_logits)/.*", CLASSIFIER),
    )


def convert_vit(
    source: Mapping[str, np.ndarray],
    spec: ViTSpec,
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    stored_grid: tuple[int, int] | None = None,
) -> Arrays:
    """Backbone parameters ("vit.*") from a timm, mmsegmentation or AugReg state, told by its names.

    ``shapes`` holds the shapes of the backbone's parameters. A position embedding of another grid
    is resized as PyTorch does; ``stored_grid`` is its (rows, columns), square if not given (or the
    model's own, if the number of positions is no square). The class token gets its position
    embedding added in, because the model keeps their sum; a model without a class token has no use
    for either. Raises UserError if the state is of no known kind or does not fit exactly.
    """
    if "dist_token" in source:
        raise UserError(f"{origin}: has a dist_token; use DeiT weights without distillation")
    if "Transformer/encoder_norm/scale" in source:
        source, rules = _joined_attention(source), augreg_rules(spec.final_norm)
        names = ("cls", "Transformer/posembed_input/pos_embedding")
    elif "blocks.0.attn.qkv.weight" in source:
        rules, names = timm_rules(spec.final_norm), ("cls_token", "pos_embed")
    elif "layers.0.attn.attn.in_proj_weight" in source:
        rules, names = mmseg_rules(spec.final_norm), ("cls_token", "pos_embed")
    else:
        first = ", ".join(list(source)[:3])
        raise UserError(
            f"{origin}: neither an AugReg, a timm nor an mmsegmentation ViT ({first} ...)"
        )
    source = _with_grid(source, names, spec, stored_grid, origin)
    return convert(source, rules, shapes, origin)


def _stem(projection: str) -> tuple[Rule, ...]:
    return (
        copy("pos_embed", "vit.pos_embed"),
        copy("class_token", "vit.class_token"),
        Rule(
            projection + r"\.weight",
            ("vit.patch_embed.kernel",),
            lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        ),
        copy(projection + r"\.bias", "vit.patch_embed.bias"),
    )


def _with_grid(
    source, names: tuple[str, str], spec: ViTSpec, grid: tuple[int, int] | None, origin: str
) -> dict:
    """The source with "pos_embed" [rows, columns, D] on the model's grid and "class_token" [D]."""
    source = dict(source)
    missing = [name for name in names if name not in source]
    if missing:
        raise UserError(f"{origin}: has no {missing[0]}; only ViTs with a class token are known")
    token, positions = (np.asarray(source.pop(name), np.float32) for name in names)
    if token.ndim != 3 or positions.ndim != 3 or token.shape[-1] != positions.shape[-1]:
        raise UserError(
            f"{origin}: {names[0]} {token.shape} and {names[1]} {positions.shape} do not belong "
            f"together; [1, 1, D] and [1, 1 + positions, D] are expected"
        )
    count = positions.shape[1] - 1
    rows, columns = grid or _likely_grid(count, spec)
    if rows * columns != count:
        raise UserError(
            f"{origin}: {names[1]} has {count} positions, neither a square nor {rows} x {columns}"
        )
    patches = positions[0, 1:].reshape(rows, columns, -1)
    source["pos_embed"] = np.asarray(resize_position_embedding(patches, spec.grid))
    if spec.class_token:
        source["class_token"] = token[0, 0] + positions[0, 0]
    return source


def _likely_grid(count: int, spec: ViTSpec) -> tuple[int, int]:
    side = math.isqrt(count)
    return (side, side) if side * side == count else spec.grid


def _joined_attention(source: Mapping[str, np.ndarray]) -> dict:
    """Query, key and value of each block as one [D, 3 D] kernel "qkv" (and bias [3 D]).

    Where one of the three is missing the others stay as they are: no rule knows them.
    """
    out = dict(source)
    for name in source:
        match = re.fullmatch(r"(.*MultiHeadDotProductAttention_1/)query/(\w+)", name)
        if match is None:
            continue
        parts = [f"{match[1]}{part}/{match[2]}" for part in ("query", "key", "value")]
        if all(part in source for part in parts):
            # [D, heads, D / heads] or, of a bias, [heads, D / heads]
            flat = [x.reshape(*x.shape[:-2], -1) for x in map(np.asarray, map(out.pop, parts))]
            out[f"{match[1]}qkv/{match[2]}"] = np.concatenate(flat, axis=-1)
    return out
