"""Weights of released heads: DToP's ATM head, SegViT's cascade, mmsegmentation's SETR and FCN."""

import numpy as np

from jaxseg.convert.rules import Rule, copy, ignore, linear, norm

COUNTER = "counts training batches; nothing reads it"
BUFFER = "constant of the loss"


def _packed(x: np.ndarray) -> list[np.ndarray]:
    return [part.T for part in np.split(x, 3)]


def _decoder(source: str, target: str) -> tuple[Rule, ...]:
    """The TPN decoder; ``source`` and ``target`` end without a dot; one group is the layer."""
    layer, ours = source + r"\.layers\.(\d+)\.", target + r".layers.\1."
    qkv = [ours + f"self_attn.{part}" for part in "qkv"]
    cross = ours + "cross_attn."
    return (
        Rule(layer + r"self_attn\.in_proj_weight", tuple(n + ".kernel" for n in qkv), _packed),
        Rule(layer + r"self_attn\.in_proj_bias", tuple(n + ".bias" for n in qkv), _packed),
        *linear(layer + r"self_attn\.out_proj", ours + "self_attn.out"),
        *linear(layer + r"multihead_attn\.q", cross + "q"),
        *linear(layer + r"multihead_attn\.k", cross + "k"),
        *linear(layer + r"multihead_attn\.v", cross + "v"),
        *linear(layer + r"multihead_attn\.proj", cross + "out"),
        *linear(layer + "linear1", ours + "fc1"),
        *linear(layer + "linear2", ours + "fc2"),
        *norm(layer + "norm1", ours + "norm1"),
        *norm(layer + "norm2", ours + "norm2"),
        *norm(layer + "norm3", ours + "norm3"),
    )


def atm_rules(source: str, target: str) -> tuple[Rule, ...]:
    """DToP's decoupled head, e.g. from "decode_head\\." to "heads.2."."""
    return (
        *linear(source + "input_proj", target + "decoder.input_proj"),
        *norm(source + "proj_norm", target + "decoder.input_norm"),
        copy(source + r"q\.weight", target + "queries"),
        *linear(source + "class_embed", target + "class_embed"),
        *_decoder(source + "decoder", target + "decoder"),
        ignore(source + r"loss_decode\..*", BUFFER),
    )


def cascade_rules(source: str, target: str, levels: int) -> tuple[Rule, ...]:
    """SegViT v1: level 1 of the released names reads the deepest tap."""
    return (
        *(
            rule
            for i in range(levels)
            for rule in (
                *linear(f"{source}input_proj_{i + 1}", f"{target}decoders.{i}.input_proj"),
                *norm(f"{source}proj_norm_{i + 1}", f"{target}decoders.{i}.input_norm"),
                *_decoder(f"{source}decoder_{i + 1}", f"{target}decoders.{i}"),
            )
        ),
        copy(source + r"q\.weight", target + "queries"),
        *linear(source + "class_embed", target + "class_embed"),
        ignore(source + r"loss_decode\..*", BUFFER),
    )


def conv_rules(source: str, target: str) -> tuple[Rule, ...]:
    """SETR ("up_convs.0.0.conv") and FCN ("convs.0.conv"); parameters and running
    statistics together."""
    rules = []
    for prefix in (source + r"up_convs\.(\d+)\.0\.", source + r"convs\.(\d+)\."):
        rules += [
            Rule(
                prefix + r"conv\.weight",
                (target + r"convs.\1.kernel",),
                lambda x: (x.transpose(2, 3, 1, 0),),
            ),
            copy(prefix + r"bn\.weight", target + r"bns.\1.scale"),
            copy(prefix + r"bn\.bias", target + r"bns.\1.bias"),
            copy(prefix + r"bn\.running_mean", target + r"bns.\1.mean"),
            copy(prefix + r"bn\.running_var", target + r"bns.\1.var"),
            ignore(prefix + r"bn\.num_batches_tracked", COUNTER),
        ]
    return (
        *norm(source + "norm", target + "norm"),
        *rules,
        Rule(
            source + r"conv_seg\.weight",
            (target + "classify.kernel",),
            lambda x: (x.reshape(x.shape[:2]).T,),  # refuses a kernel that is not 1x1
        ),
        copy(source + r"conv_seg\.bias", target + "classify.bias"),
    )
