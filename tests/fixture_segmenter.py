"""Parts of `verify_fixture` for Segmenter's decoders: those of mmsegmentation and of CTS."""

import re

import jax.numpy as jnp
import numpy as np
from fixture_parts import accuracy, bind, heads_part, module_shapes, run, run_head, weights_below

from jaxseg.convert.rules import convert, linear
from jaxseg.convert.segmenter import mask_transformer_rules, mmseg_mask_rules
from jaxseg.models.heads import ConvHead, ConvSpec, pixel_scores
from jaxseg.models.mask_transformer import MaskSpec, MaskTransformerHead
from jaxseg.tokens import Rows


def all_heads(data: dict, check) -> None:
    """F4: the mask transformer where the file has one, and the convolutional heads."""
    if any(name.startswith("out/segmenter_mask/") for name in check.outputs):
        mmseg_mask(data, check)
    heads_part(data, check)


def mmseg_mask(data: dict, check) -> None:
    config = data["config"]
    words = dict(re.findall(r"(\w+)=(\d+)", config["segmenter_mask"]))
    spec = MaskSpec(
        classes=config["num_classes"],
        width=int(words["embed_dims"]),
        heads=int(words["num_heads"]),
        layers=int(words["num_layers"]),
    )
    feature, labels = data[f"in/feat{config['in_index']}"], jnp.asarray(data["in/label"][:, 0])
    taps = [jnp.asarray(feature.reshape(*feature.shape[:2], -1).swapaxes(1, 2))]
    module = MaskTransformerHead(feature.shape[1], spec)
    source = weights_below(data, "weights/segmenter_mask/")
    head = filled(module, source, mmseg_mask_rules("", ""))
    logits = run_head(head, taps, feature.shape[2:])
    check.equal("segmenter_mask/head_logits", logits.mask.transpose(0, 3, 1, 2))
    (term,) = head.losses(logits, labels).values()
    check.equal("segmenter_mask/loss/loss_ce", term.value())
    full = pixel_scores(head, logits, labels.shape[1:])
    check.equal("segmenter_mask/loss/acc_seg", accuracy(full, labels))


def cts_decoders(data: dict, check, name: str, tokens) -> None:
    """F7, ``name`` such as "square/share": both decoders on the encoder's ``tokens`` [B, 1 + T, D].

    The class token comes first; a token's logits fill the cells that it stands for.
    """
    codes = data[f"out/{name}/patch_code_scale_row_col"].astype(int)
    for kind, decoder in (("mask", mask_decoder), ("linear", linear_decoder)):
        if not weights_below(data, f"weights/decoder_{kind}/"):  # a cut file
            continue
        head = decoder(data)
        logits = run(head, (jnp.asarray(tokens),), Rows(None, prefix=1))
        maps = np.stack([cells(*pair) for pair in zip(logits.mask[:, 1:], codes, strict=True)])
        check.equal(f"{name}/{kind}_decoder_grid", maps.transpose(0, 3, 1, 2))


def mask_decoder(data: dict) -> MaskTransformerHead:
    sizes = data["config"]["mask_decoder"]
    spec = MaskSpec(sizes["n_cls"], sizes["d_model"], sizes["n_heads"], sizes["n_layers"])
    source = weights_below(data, "weights/decoder_mask/")
    return filled(
        MaskTransformerHead(sizes["d_encoder"], spec), source, mask_transformer_rules("", "")
    )


def linear_decoder(data: dict) -> ConvHead:
    classes, width = data["config"]["n_cls"], data["config"]["d_model"]
    module = ConvHead(width, ConvSpec(classes, channels=width, convs=0, norm=False), None)
    source = weights_below(data, "weights/decoder_linear/")
    return filled(module, source, linear("head", "classify"))


def filled(module, source: dict, rules):
    """The module with the weights of ``source``, of which all must fit."""
    return bind(module, convert(source, rules, module_shapes(module, ""), "fixture"))


def cells(per_token, codes) -> np.ndarray:
    """[T, K] of one image on its grid [r, c, K]; ``codes`` [T, 3] hold side, row and column."""
    rows, columns = (codes[:, 1:] + codes[:, :1]).max(axis=0)
    grid = np.full((rows, columns, per_token.shape[-1]), np.nan, np.float32)
    for values, (side, row, column) in zip(np.asarray(per_token), codes, strict=True):
        grid[row : row + side, column : column + side] = values
    return grid
