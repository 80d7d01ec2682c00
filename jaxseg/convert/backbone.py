"""ViT weights of timm (and DeiT), mmsegmentation and AugReg (the original JAX ViT)."""

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
        ignore(r"(head|fc_norm|head_dist|pre_logits)\..*", CLASSIFIER),
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
    """The original JAX ViT's .npz; `_timm_like` has joined its query, key and value before."""
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
    source: Mapping[str, np.ndarray], spec: ViTSpec, shapes: dict, origin: str
) -> Arrays:
    """Backbone parameters ("vit.*") from a timm, mmsegmentation or AugReg state, told by its names.

    ``shapes`` holds the shapes of the backbone's parameters. A position embedding of another grid is
    resized as PyTorch does. The class token gets its position embedding added in, because the model
    keeps their sum; a model without a class token has no use for either.
    """
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
    return convert(_positions(source, names, spec, origin), rules, shapes, origin)


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


def _positions(source, names: tuple[str, str], spec: ViTSpec, origin: str) -> dict:
    """The source with "pos_embed" [rows, columns, D] on the model's grid and "class_token" [D]."""
    source = dict(source)
    missing = [name for name in names if name not in source]
    if missing:
        raise UserError(f"{origin}: has no {missing[0]}; only ViTs with a class token are known")
    token = np.asarray(source.pop(names[0]), np.float32)[0, 0]
    positions = np.asarray(source.pop(names[1]), np.float32)[0]
    patches = positions[1:]
    grid = _stored_grid(len(patches), spec)
    if grid is None:
        raise UserError(f"{origin}: {len(patches)} positions are no square grid")
    patches = patches.reshape(*grid, -1)
    source["pos_embed"] = np.asarray(resize_position_embedding(patches, spec.grid))
    if spec.class_token:
        source["class_token"] = token + positions[0]
    return source


def _stored_grid(count: int, spec: ViTSpec) -> tuple[int, int] | None:
    side = int(count**0.5 + 0.5)
    if side * side == count:
        return side, side
    return spec.grid if spec.grid[0] * spec.grid[1] == count else None


def _joined_attention(source: Mapping[str, np.ndarray]) -> dict:
    """Query, key and value of each block as one [D, 3 D] kernel "qkv"."""
    out = {}
    for name, array in source.items():
        match = re.fullmatch(r"(.*MultiHeadDotProductAttention_1/)(query|key|value)/(\w+)", name)
        if match is None:
            out[name] = array
        elif match[2] == "query":
            parts = [
                np.asarray(source[f"{match[1]}{p}/{match[3]}"]) for p in ("query", "key", "value")
            ]
            lead = parts[0].shape[:-2]
            out[f"{match[1]}qkv/{match[3]}"] = np.concatenate(
                [part.reshape(*lead, -1) for part in parts], axis=-1
            )
    return out
