"""Weights of mask transformers: Segmenter's names (CTS and ALGM keep them) and mmsegmentation's."""

from jaxseg.convert.rules import Rule, copy, ignore, linear, norm

UNUSED = "the classifier that every mmsegmentation head inherits; this one never calls it"


def mask_transformer_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The released mask transformer, e.g. from "decoder\\." to "heads.0."."""
    block, ours = source + r"blocks\.(\d+)\.", target + r"blocks.\1."
    return (
        *linear(source + "proj_dec", target + "input_proj"),
        _class_tokens(source, target),
        *norm(block + "norm1", ours + "norm1"),
        *linear(block + r"attn\.qkv", ours + "attn.qkv"),
        *linear(block + r"attn\.proj", ours + "attn.out"),
        *norm(block + "norm2", ours + "norm2"),
        *linear(block + r"mlp\.fc1", ours + "mlp.fc1"),
        *linear(block + r"mlp\.fc2", ours + "mlp.fc2"),
        *norm(source + "decoder_norm", target + "norm"),
        copy(source + "proj_patch", target + "patch_proj"),  # multiplied from the right there too
        copy(source + "proj_classes", target + "class_proj"),
        *norm(source + "mask_norm", target + "mask_norm"),
    )


def mmseg_mask_rules(source: str, target: str) -> tuple[Rule, ...]:
    """mmsegmentation's SegmenterMaskTransformerHead, e.g. from "decode_head\\."."""
    layer, ours = source + r"layers\.(\d+)\.", target + r"blocks.\1."
    qkv = layer + r"attn\.attn\.in_proj_"
    return (
        *linear(source + "dec_proj", target + "input_proj"),
        _class_tokens(source, target),
        *norm(layer + "ln1", ours + "norm1"),
        Rule(qkv + "weight", (ours + "attn.qkv.kernel",), lambda x: (x.T,)),
        copy(qkv + "bias", ours + "attn.qkv.bias"),
        *linear(layer + r"attn\.attn\.out_proj", ours + "attn.out"),
        *norm(layer + "ln2", ours + "norm2"),
        *linear(layer + r"ffn\.layers\.0\.0", ours + "mlp.fc1"),
        *linear(layer + r"ffn\.layers\.1", ours + "mlp.fc2"),
        *norm(source + "decoder_norm", target + "norm"),
        Rule(source + r"patch_proj\.weight", (target + "patch_proj",), lambda x: (x.T,)),
        Rule(source + r"classes_proj\.weight", (target + "class_proj",), lambda x: (x.T,)),
        *norm(source + "mask_norm", target + "mask_norm"),
        ignore(source + r"conv_seg\..*", UNUSED),
    )


def _class_tokens(source: str, target: str) -> Rule:
    # squeeze, unlike [0], refuses a leading axis that is not 1
    return Rule(source + "cls_emb", (target + "class_tokens",), lambda x: (x.squeeze(0),))
