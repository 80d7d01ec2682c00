"""Random states named as real checkpoints are (fact sheets of the papers' code), any size."""

import numpy as np

from jaxseg.models.efficientnet import LITE0

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def linear(name, fan_in, fan_out):
    return {f"{name}.weight": normal(fan_out, fan_in), f"{name}.bias": normal(fan_out)}


def norm(name, width):
    return {f"{name}.weight": normal(width), f"{name}.bias": normal(width)}


def mmseg_vit(width, depth, positions, patch=16, final_norm=False, prefix="backbone."):
    """mmsegmentation's ViT."""
    state = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 1 + positions, width),
        "patch_embed.projection.weight": normal(width, 3, patch, patch),
        "patch_embed.projection.bias": normal(width),
    }
    for i in range(depth):
        state |= norm(f"layers.{i}.ln1", width) | norm(f"layers.{i}.ln2", width)
        state[f"layers.{i}.attn.attn.in_proj_weight"] = normal(3 * width, width)
        state[f"layers.{i}.attn.attn.in_proj_bias"] = normal(3 * width)
        state |= linear(f"layers.{i}.attn.attn.out_proj", width, width)
        state |= linear(f"layers.{i}.ffn.layers.0.0", width, 4 * width)
        state |= linear(f"layers.{i}.ffn.layers.1", 4 * width, width)
    state |= norm("ln1", width) if final_norm else {}
    return {prefix + name: value for name, value in state.items()}


def decoder(name, width, layers):
    """The decoder of SegViT's and DToP's heads."""
    state = {}
    for i in range(layers):
        layer = f"{name}.layers.{i}."
        state[layer + "self_attn.in_proj_weight"] = normal(3 * width, width)
        state[layer + "self_attn.in_proj_bias"] = normal(3 * width)
        state |= linear(layer + "self_attn.out_proj", width, width)
        for part in ("q", "k", "v", "proj"):
            state |= linear(layer + "multihead_attn." + part, width, width)
        state |= linear(layer + "linear1", width, 4 * width)
        state |= linear(layer + "linear2", 4 * width, width)
        for j in (1, 2, 3):
            state |= norm(f"{layer}norm{j}", width)
    return state


def atm(head, token_width, width, classes, layers=3):
    """DToP's head; ``head``: "decode_head.", "auxiliary_head.0." ..."""
    return {
        head + "loss_decode.criterion.empty_weight": normal(2),
        **linear(head + "input_proj", token_width, width),
        **norm(head + "proj_norm", width),
        head + "q.weight": normal(classes, width),
        **linear(head + "class_embed", width, 2),
        **decoder(head + "decoder", width, layers),
    }


def cascade(token_width, width, classes, levels=3, layers=3):
    """SegViT's head."""
    state = {
        "decode_head.loss_decode.criterion.empty_weight": normal(classes + 1),
        "decode_head.q.weight": normal(classes, width),
        **linear("decode_head.class_embed", width, classes + 1),
    }
    for i in range(1, levels + 1):
        state |= linear(f"decode_head.input_proj_{i}", token_width, width)
        state |= norm(f"decode_head.proj_norm_{i}", width)
        state |= decoder(f"decode_head.decoder_{i}", width, layers)
    return state


def setr(head, token_width, channels, classes, convs=1, kernel=1):
    """mmsegmentation's SETRUPHead."""
    state = norm(head + "norm", token_width)
    for i in range(convs):
        width = channels if i else token_width
        state[f"{head}up_convs.{i}.0.conv.weight"] = normal(channels, width, kernel, kernel)
        bn = f"{head}up_convs.{i}.0.bn"
        state |= norm(bn, channels)
        state |= {
            f"{bn}.running_mean": normal(channels),
            f"{bn}.running_var": normal(channels) ** 2,
        }
        state[f"{bn}.num_batches_tracked"] = np.array(7)
    state[head + "conv_seg.weight"] = normal(classes, channels, 1, 1)
    state[head + "conv_seg.bias"] = normal(classes)
    return state


def timm_blocks(prefix, width, depth):
    state = {}
    for i in range(depth):
        block = f"{prefix}blocks.{i}."
        state |= norm(block + "norm1", width) | norm(block + "norm2", width)
        state |= linear(block + "attn.qkv", width, 3 * width)
        state |= linear(block + "attn.proj", width, width)
        state |= linear(block + "mlp.fc1", width, 4 * width)
        state |= linear(block + "mlp.fc2", 4 * width, width)
    return state


def timm_vit(width, depth, positions, patch=16, prefix=""):
    """timm's ViT with a classifier of ten classes."""
    return timm_blocks(prefix, width, depth) | {
        prefix + "cls_token": normal(1, 1, width),
        prefix + "pos_embed": normal(1, 1 + positions, width),
        prefix + "patch_embed.proj.weight": normal(width, 3, patch, patch),
        prefix + "patch_embed.proj.bias": normal(width),
        **norm(prefix + "norm", width),
        **linear(prefix + "head", width, 10),
    }


def mask_transformer(width, classes, layers=2):
    """Segmenter's own decoder."""
    return timm_blocks("decoder.", width, layers) | {
        "decoder.cls_emb": normal(1, classes, width),
        "decoder.proj_patch": normal(width, width),
        "decoder.proj_classes": normal(width, width),
        **linear("decoder.proj_dec", width, width),
        **norm("decoder.decoder_norm", width),
        **norm("decoder.mask_norm", classes),
    }


def mmseg_mask_transformer(width, classes, layers=2):
    """The same decoder as mmsegmentation names it."""
    head = "decode_head."
    state = {
        head + "cls_emb": normal(1, classes, width),
        head + "patch_proj.weight": normal(width, width),
        head + "classes_proj.weight": normal(width, width),
        head + "conv_seg.weight": normal(classes, width, 1, 1),
        head + "conv_seg.bias": normal(classes),
        **linear(head + "dec_proj", width, width),
        **norm(head + "decoder_norm", width),
        **norm(head + "mask_norm", classes),
    }
    layer = mmseg_vit(width, layers, 1, prefix=head)
    return state | {n: v for n, v in layer.items() if n.startswith(head + "layers.")}


def torch_shapes(stages, prefix=""):
    """Names and shapes of timm's trunk with ``stages``, in its order."""
    found = {}

    def add(conv, norm, out, inner, size):
        found[f"{prefix}{conv}.weight"] = (out, inner, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{prefix}{norm}.{part}"] = (out,)
        found[f"{prefix}{norm}.num_batches_tracked"] = ()

    width = 32
    add("conv_stem", "bn1", width, 3, 3)
    for s, stage in enumerate(stages):
        for i in range(stage.blocks):
            name, hidden = f"blocks.{s}.{i}.", width * stage.expand
            convs = [("conv_dw", hidden, 1, stage.size), ("conv_pwl", stage.width, hidden, 1)]
            if stage.expand > 1:
                convs.insert(0, ("conv_pw", hidden, width, 1))
            else:
                convs[-1] = ("conv_pw", *convs[-1][1:])
            for number, (conv, *sizes) in enumerate(convs, 1):
                add(name + conv, f"{name}bn{number}", *sizes)
            width = stage.width
    return found


def policy_shapes():
    """Of CTS's policy network."""
    head = {"head.weight": (2, 320, 1, 1), "head.bias": (2,)}
    return torch_shapes(LITE0, "backbone.") | head
