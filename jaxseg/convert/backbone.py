"""ViT weights of timm (and DeiT), mmsegmentation, AugReg (the original JAX ViT) and SViT."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxseg.convert.rules import Arrays, Rule, convert, copy, ignore, linear, norm
from jaxseg.errors import UserError
from jaxseg.models.vit import ViTSpec
from jaxseg.resize import resize_position_embedding

CLASSIFIER = "classifier of the pre-training"
UNUSED_NORM = "final norm that this model does not have"
UNUSED_TOKEN = "class token that this model drops before its first block"
GATES = "gates of SViT, which this model does not have"
DISTILLED = "distillation token, which no ViT here has; its position embedding goes with it"


def timm_rules(final_norm: bool, class_token: bool = True, prefix: str = "") -> tuple[Rule, ...]:
    """timm's VisionTransformer; ``prefix`` is a pattern before every name."""
    block, ours = prefix + r"blocks\.(\d+)\.", r"vit.blocks.\1."
    return (
        *_around_blocks(final_norm, class_token, prefix),
        *norm(block + "norm1", ours + "norm1"),
        *linear(block + r"attn\.qkv", ours + "attn.qkv"),
        *linear(block + r"attn\.proj", ours + "attn.out"),
        *norm(block + "norm2", ours + "norm2"),
        *linear(block + r"mlp\.fc1", ours + "mlp.fc1"),
        *linear(block + r"mlp\.fc2", ours + "mlp.fc2"),
    )


def svit_rules(final_norm: bool, class_token: bool = True, prefix: str = "") -> tuple[Rule, ...]:
    """SViT's classifier: timm's, but blocks that are torch's TransformerEncoderLayer."""
    block, ours = prefix + r"blocks\.(\d+)\.TransformerEncoderLayer\.", r"vit.blocks.\1."
    qkv = ours + "attn.qkv."
    return (
        *_around_blocks(final_norm, class_token, prefix),
        *norm(block + "norm1", ours + "norm1"),
        Rule(block + r"self_attn\.in_proj_weight", (qkv + "kernel",), lambda x: (x.T,)),
        copy(block + r"self_attn\.in_proj_bias", qkv + "bias"),
        *linear(block + r"self_attn\.out_proj", ours + "attn.out"),
        *norm(block + "norm2", ours + "norm2"),
        *linear(block + "linear1", ours + "mlp.fc1"),
        *linear(block + "linear2", ours + "mlp.fc2"),
        ignore(prefix + r"selective_modules\..*", GATES),
    )


def _around_blocks(final_norm: bool, class_token: bool, prefix: str) -> tuple[Rule, ...]:
    """What timm's VisionTransformer has beside its blocks."""
    return (
        *_tokens(prefix, "cls_token", "pos_embed", class_token),
        *_patches(prefix + r"patch_embed\.proj"),
        *_last_norm(norm(prefix + "norm", "vit.norm"), prefix + r"norm\..*", final_norm),
        ignore(prefix + r"(head|head_dist|fc_norm|pre_logits)\..*", CLASSIFIER),
        ignore(prefix + "dist_token", DISTILLED),
    )


def mmseg_rules(final_norm: bool, class_token: bool = True, prefix: str = "") -> tuple[Rule, ...]:
    """mmsegmentation's VisionTransformer; ``prefix`` is a pattern before every name."""
    block, ours = prefix + r"layers\.(\d+)\.", r"vit.blocks.\1."
    return (
        *_tokens(prefix, "cls_token", "pos_embed", class_token),
        *_patches(prefix + r"patch_embed\.projection"),
        *norm(block + "ln1", ours + "norm1"),
        Rule(block + r"attn\.attn\.in_proj_weight", (ours + "attn.qkv.kernel",), lambda x: (x.T,)),
        copy(block + r"attn\.attn\.in_proj_bias", ours + "attn.qkv.bias"),
        *linear(block + r"attn\.attn\.out_proj", ours + "attn.out"),
        *norm(block + "ln2", ours + "norm2"),
        *linear(block + r"ffn\.layers\.0\.0", ours + "mlp.fc1"),
        *linear(block + r"ffn\.layers\.1", ours + "mlp.fc2"),
        *_last_norm(norm(prefix + "ln1", "vit.norm"), prefix + r"ln1\..*", final_norm),
    )


def augreg_rules(final_norm: bool, class_token: bool = True, prefix: str = "") -> tuple[Rule, ...]:
    """The original JAX ViT's .npz; `_joined_attention` has packed query, key and value before."""
    block, ours = prefix + r"Transformer/encoderblock_(\d+)/", r"vit.blocks.\1."

    def dense(source, target):
        return copy(source + "/kernel", target + ".kernel"), copy(
            source + "/bias", target + ".bias"
        )

    def scale(source, target):
        return copy(source + "/scale", target + ".scale"), copy(source + "/bias", target + ".bias")

    attention = block + "MultiHeadDotProductAttention_1/"
    last = prefix + "Transformer/encoder_norm"
    return (
        *_tokens(prefix, "cls", "Transformer/posembed_input/pos_embedding", class_token),
        Rule(
            prefix + "embedding/kernel",
            ("vit.patch_embed.kernel",),
            lambda x: (x.reshape(-1, x.shape[-1]),),
        ),
        copy(prefix + "embedding/bias", "vit.patch_embed.bias"),
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
        *_last_norm(scale(last, "vit.norm"), last + "/.*", final_norm),
        ignore(prefix + "(head|pre_logits)/.*", CLASSIFIER),
    )


@dataclass(frozen=True)
class Layout:
    """How a program names the arrays of its ViT.

    ``sign`` tells the layout; ``block`` is a pattern whose group is the number of a block;
    ``rules`` takes (final_norm, class_token, prefix).
    """

    program: str
    sign: str
    token: str
    positions: str
    patches: str
    block: str
    last_norm: str
    rules: Callable[[bool, bool, str], tuple[Rule, ...]]


AUGREG = Layout(
    program="AugReg",
    sign="Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
    token="cls",
    positions="Transformer/posembed_input/pos_embedding",
    patches="embedding/kernel",
    block=r"Transformer/encoderblock_(\d+)/",
    last_norm="Transformer/encoder_norm/scale",
    rules=augreg_rules,
)
TIMM = Layout(
    program="timm",
    sign="blocks.0.attn.qkv.weight",
    token="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj.weight",
    block=r"blocks\.(\d+)\.",
    last_norm="norm.weight",
    rules=timm_rules,
)
MMSEG = Layout(
    program="mmsegmentation",
    sign="layers.0.attn.attn.in_proj_weight",
    token="cls_token",
    positions="pos_embed",
    patches="patch_embed.projection.weight",
    block=r"layers\.(\d+)\.",
    last_norm="ln1.weight",
    rules=mmseg_rules,
)
SVIT = replace(
    TIMM,
    program="SViT",
    sign="blocks.0.TransformerEncoderLayer.self_attn.in_proj_weight",
    rules=svit_rules,
)
LAYOUTS = (AUGREG, TIMM, MMSEG, SVIT)


def layout_of(source: Mapping[str, np.ndarray]) -> Layout | None:
    """The layout of a ViT whose names have no prefix; None if it is of no known kind."""
    return next((layout for layout in LAYOUTS if layout.sign in source), None)


def convert_vit(
    source: Mapping[str, np.ndarray],
    spec: ViTSpec,
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    stored_grid: tuple[int, int] | None = None,
    beside: Sequence[Rule] = (),
) -> Arrays:
    """Backbone parameters ("vit.*") from a timm, mmsegmentation, AugReg or SViT state, told by its
    names.

    ``shapes`` holds the shapes of the backbone's parameters, and of what the rules ``beside`` fill
    (`jaxseg.convert.classifier`). See `prepared` for ``stored_grid``.
    Raises UserError if the state is of no known kind or does not fit exactly.
    """
    layout = layout_of(source)
    if layout is None:
        first = ", ".join(list(source)[:3])
        raise UserError(
            f"{origin}: neither an AugReg, a timm nor an mmsegmentation ViT ({first} ...); a model "
            f"with heads needs python -m jaxseg.tools.convert first"
        )
    rules = (*beside, *layout.rules(spec.final_norm, spec.class_token, ""))
    return convert(prepared(source, layout, spec, origin, stored_grid), rules, shapes, origin)


def prepared(
    source: Mapping[str, np.ndarray],
    layout: Layout,
    spec: ViTSpec,
    origin: str,
    stored_grid: tuple[int, int] | None = None,
    prefix: str = "",
) -> dict[str, np.ndarray]:
    """The source as the rules of its layout expect it, same names.

    A position embedding of another grid is resized as PyTorch does; ``stored_grid`` is its (rows,
    columns), square if not given (or the model's own, if the number of positions is no square). The
    class token gets its position embedding added in, because the model keeps their sum. AugReg's
    query, key and value become one. Raises UserError: no class token, positions of no grid, or
    another number of attention heads (which only AugReg's shapes tell).
    """
    source = _joined_attention(source, spec.heads, origin) if layout is AUGREG else dict(source)
    names = prefix + layout.token, prefix + layout.positions
    missing = [name for name in names if name not in source]
    if missing:
        raise UserError(f"{origin}: has no {missing[0]}; only ViTs with a class token are known")
    token, positions = (np.asarray(source[name], np.float32) for name in names)
    width = token.shape[-1:]
    if token.shape != (1, 1, *width) or positions.shape != (1, *positions.shape[1:2], *width):
        raise UserError(
            f"{origin}: {names[0]} {token.shape} and {names[1]} {positions.shape} do not belong "
            f"together; [1, 1, D] and [1, 1 + positions, D] are expected"
        )
    before = tokens_before(source, prefix)
    count = positions.shape[1] - before
    rows, columns = stored_grid or _likely_grid(count, spec)
    if count < 1 or rows * columns != count:
        raise UserError(
            f"{origin}: {names[1]} has {count} positions, neither a square nor {rows} x {columns}"
        )
    patches = positions[0, before:].reshape(rows, columns, -1)
    source[names[0]] = token[0, 0] + positions[0, 0]
    source[names[1]] = np.asarray(resize_position_embedding(patches, spec.grid))
    return source


def tokens_before(source: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many rows of the position embedding are not for patches."""
    return 2 if prefix + "dist_token" in source else 1


def _likely_grid(count: int, spec: ViTSpec) -> tuple[int, int]:
    side = math.isqrt(max(count, 0))
    return (side, side) if side * side == count else spec.grid


def _tokens(prefix: str, token: str, positions: str, class_token: bool) -> tuple[Rule, Rule]:
    kept = copy(prefix + token, "vit.class_token")
    return (
        copy(prefix + positions, "vit.pos_embed"),
        kept if class_token else ignore(prefix + token, UNUSED_TOKEN),
    )


def _patches(projection: str) -> tuple[Rule, Rule]:
    return (
        Rule(
            projection + r"\.weight",
            ("vit.patch_embed.kernel",),
            lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        ),
        copy(projection + r"\.bias", "vit.patch_embed.bias"),
    )


def _last_norm(rules: tuple[Rule, Rule], pattern: str, final_norm: bool) -> tuple[Rule, ...]:
    return rules if final_norm else (ignore(pattern, UNUSED_NORM),)


def _joined_attention(source: Mapping[str, np.ndarray], heads: int, origin: str) -> dict:
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
            arrays = [np.asarray(out.pop(part)) for part in parts]
            if any(array.shape[-2:-1] != (heads,) for array in arrays):
                raise UserError(
                    f"{origin}: {name} {arrays[0].shape} is not of {heads} attention heads, as the "
                    f"model has"
                )
            flat = [x.reshape(*x.shape[:-2], -1) for x in arrays]
            out[f"{match[1]}qkv/{match[2]}"] = np.concatenate(flat, axis=-1)
    return out
