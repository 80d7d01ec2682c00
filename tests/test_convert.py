"""Converters: strict both ways, every layout the same numbers. `test_golden` has foreign models."""

import dataclasses
import pickle
import re

import numpy as np
import pytest

from jaxseg.convert.backbone import convert_vit
from jaxseg.convert.heads import atm_rules, conv_rules
from jaxseg.convert.rules import Rule, convert, copy, ignore, linear
from jaxseg.convert.start import start_from
from jaxseg.errors import UserError
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import ViTSpec
from jaxseg.resize import resize_position_embedding
from jaxseg.weights import save_weights

RNG = np.random.default_rng(0)
WIDTH, HEADS, PATCH = 12, 3, 4
VIT = ViTSpec(WIDTH, 2, HEADS, grid=(3, 3), patch=PATCH, class_token=True, final_norm=True)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def vit_shapes(spec):
    heads = (HeadSpec((0,), ConvSpec(2)),)
    return {n: s.shape for n, s in shapes(SegmenterSpec(spec, heads))[0].items() if "vit." in n}


def timm_state(grid=(3, 3)):
    """Random weights in timm's layout."""
    state = {
        "cls_token": normal(1, 1, WIDTH),
        "pos_embed": normal(1, 1 + grid[0] * grid[1], WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": normal(WIDTH),
        "norm.weight": normal(WIDTH),
        "norm.bias": normal(WIDTH),
        "head.weight": normal(7, WIDTH),
        "head.bias": normal(7),
    }
    for i in range(2):
        for name, fan_in, fan_out in (
            ("attn.qkv", WIDTH, 3 * WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", WIDTH, 4 * WIDTH),
            ("mlp.fc2", 4 * WIDTH, WIDTH),
        ):
            state[f"blocks.{i}.{name}.weight"] = normal(fan_out, fan_in)
            state[f"blocks.{i}.{name}.bias"] = normal(fan_out)
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = normal(WIDTH)
            state[f"blocks.{i}.{name}.bias"] = normal(WIDTH)
    return state


def mmseg_state(timm):
    """The same weights under mmsegmentation's names."""
    renames = [
        ("patch_embed.proj.", "patch_embed.projection."),
        ("blocks.", "layers."),
        (".attn.qkv.", ".attn.attn.in_proj_"),
        (".attn.proj.", ".attn.attn.out_proj."),
        (".norm1.", ".ln1."),
        (".norm2.", ".ln2."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    ]
    out = {}
    for name, value in timm.items():
        if name.startswith("head."):
            continue
        for old, new in renames:
            name = name.replace(old, new)
        out[name.replace("norm.", "ln1.") if name.startswith("norm.") else name] = value
    return out


def augreg_state(timm):
    """The same weights in the layout of the original JAX ViT."""
    per_head = (HEADS, WIDTH // HEADS)
    out = {
        "cls": timm["cls_token"],
        "Transformer/posembed_input/pos_embedding": timm["pos_embed"],
        "embedding/kernel": timm["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": timm["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": timm["norm.weight"],
        "Transformer/encoder_norm/bias": timm["norm.bias"],
        "head/kernel": timm["head.weight"].T,
        "head/bias": timm["head.bias"],
    }
    for i in range(2):
        old, new = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = new + "MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * WIDTH, (j + 1) * WIDTH)
            kernel = timm[old + "attn.qkv.weight"][rows].T
            out[f"{attention}{part}/kernel"] = kernel.reshape(WIDTH, *per_head)
            out[f"{attention}{part}/bias"] = timm[old + "attn.qkv.bias"][rows].reshape(per_head)
        out[attention + "out/kernel"] = timm[old + "attn.proj.weight"].T.reshape(*per_head, WIDTH)
        out[attention + "out/bias"] = timm[old + "attn.proj.bias"]
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out[f"{new}{theirs}/scale"] = timm[f"{old}{ours}.weight"]
            out[f"{new}{theirs}/bias"] = timm[f"{old}{ours}.bias"]
        for theirs, ours in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            out[f"{new}MlpBlock_3/{theirs}/kernel"] = timm[f"{old}mlp.{ours}.weight"].T
            out[f"{new}MlpBlock_3/{theirs}/bias"] = timm[f"{old}mlp.{ours}.bias"]
    return out


LAYOUTS = {"timm": dict, "mmseg": mmseg_state, "augreg": augreg_state}


# --- backbones


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["class token and norm", "neither"])
def test_every_layout_gives_the_same_parameters(layout, setting):
    kept = setting != "neither"
    spec = dataclasses.replace(VIT, class_token=kept, final_norm=kept)
    timm = timm_state()
    ours = convert_vit(LAYOUTS[layout](timm), spec, vit_shapes(spec), "x.npz")
    assert ours.keys() == vit_shapes(spec).keys()
    expected = {
        "vit.pos_embed": timm["pos_embed"][0, 1:].reshape(3, 3, WIDTH),
        "vit.patch_embed.bias": timm["patch_embed.proj.bias"],
        "vit.blocks.1.attn.qkv.kernel": timm["blocks.1.attn.qkv.weight"].T,
        "vit.blocks.1.attn.qkv.bias": timm["blocks.1.attn.qkv.bias"],
        "vit.blocks.0.attn.out.kernel": timm["blocks.0.attn.proj.weight"].T,
        "vit.blocks.0.mlp.fc1.kernel": timm["blocks.0.mlp.fc1.weight"].T,
        "vit.blocks.0.mlp.fc2.bias": timm["blocks.0.mlp.fc2.bias"],
        "vit.blocks.0.norm1.scale": timm["blocks.0.norm1.weight"],
        "vit.blocks.0.norm2.bias": timm["blocks.0.norm2.bias"],
    }
    if kept:
        expected["vit.norm.scale"] = timm["norm.weight"]
        expected["vit.class_token"] = timm["cls_token"][0, 0] + timm["pos_embed"][0, 0]
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    # Row (i, j, c) of the patch kernel meets pixel (i, j), channel c.
    kernel = ours["vit.patch_embed.kernel"].reshape(PATCH, PATCH, 3, WIDTH)
    np.testing.assert_array_equal(kernel[1, 2, 0], timm["patch_embed.proj.weight"][:, 0, 1, 2])


def test_positions_of_another_grid_are_resized_but_not_the_class_token():
    timm = timm_state(grid=(6, 6))
    ours = convert_vit(timm, VIT, vit_shapes(VIT), "x.npz")
    patches = timm["pos_embed"][0, 1:].reshape(6, 6, WIDTH)
    expected = resize_position_embedding(patches, (3, 3))
    np.testing.assert_array_equal(ours["vit.pos_embed"], expected)
    token = timm["cls_token"][0, 0] + timm["pos_embed"][0, 0]
    np.testing.assert_array_equal(ours["vit.class_token"], token)


def test_grids_that_are_not_square():
    """36 positions are 6 x 6 unless said otherwise; 6 positions can only be the model's 2 x 3."""
    spec = dataclasses.replace(VIT, grid=(4, 9))
    timm = timm_state(grid=(4, 9))
    patches = timm["pos_embed"][0, 1:]
    said = convert_vit(timm, spec, vit_shapes(spec), "x.npz", stored_grid=(4, 9))
    np.testing.assert_array_equal(said["vit.pos_embed"], patches.reshape(4, 9, WIDTH))
    square = convert_vit(timm, spec, vit_shapes(spec), "x.npz")
    expected = resize_position_embedding(patches.reshape(6, 6, WIDTH), (4, 9))
    np.testing.assert_array_equal(square["vit.pos_embed"], expected)
    spec = dataclasses.replace(VIT, grid=(2, 3))
    own = convert_vit(timm_state(grid=(2, 3)), spec, vit_shapes(spec), "x.npz")
    assert own["vit.pos_embed"].shape == (2, 3, WIDTH)


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def without(state, name):
    return {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "cls_token"), ["has no cls_token"]),
        (lambda s: s | {"cls_token": normal(2, 1, WIDTH)}, ["cls_token (2, 1, 12)"]),
        (lambda s: s | {"pos_embed": normal(1, 8, WIDTH)}, ["7 positions"]),
        (lambda s: s | {"pos_embed": normal(1, 1, WIDTH)}, ["0 positions"]),
        (lambda s: s | {"dist_token": normal(1, 1, WIDTH)}, ["8 positions"]),
        (lambda s: s | {"pos_embed": normal(10, WIDTH)}, ["pos_embed (10, 12)"]),
        (lambda s: {"conv1.weight": normal(3)}, ["neither an AugReg", "conv1.weight"]),
        (lambda s: {"backbone." + n: v for n, v in s.items()}, ["jaxseg.tools.convert first"]),
        (lambda s: {}, ["neither an AugReg"]),
        (lambda s: without(s, "norm.weight"), ["1 without a source (vit.norm.scale)"]),
        (lambda s: s | {"gate": normal(1)}, ["1 not understood (gate)"]),
    ],
)
def test_other_backbones_are_refused(change, words):
    state = change(timm_state())
    refused(lambda: convert_vit(state, VIT, vit_shapes(VIT), "x.npz"), "x.npz", *words)


def test_a_distillation_token_goes_with_its_position():
    """The same parameters as without: the second row of positions is the token's."""
    timm = timm_state()
    rows = timm["pos_embed"]
    positions = np.concatenate([rows[:, :1], normal(1, 1, WIDTH), rows[:, 1:]], axis=1)
    distilled = {"dist_token": normal(1, 1, WIDTH), "head_dist.weight": normal(7, WIDTH)}
    distilled = timm | distilled | {"pos_embed": positions, "head_dist.bias": normal(7)}
    expected = convert_vit(timm, VIT, vit_shapes(VIT), "x.npz")
    ours = convert_vit(distilled, VIT, vit_shapes(VIT), "x.npz")
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_another_number_of_heads_shows_in_augreg():
    spec = dataclasses.replace(VIT, heads=2)
    state = augreg_state(timm_state())
    refused(lambda: convert_vit(state, spec, vit_shapes(spec), "x.npz"), "not of 2 attention heads")


def test_a_missing_key_of_augreg_is_named():
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias"
    state = without(augreg_state(timm_state()), name)
    words = ["vit.blocks.0.attn.qkv.bias", "query/bias", "value/bias"]
    refused(lambda: convert_vit(state, VIT, vit_shapes(VIT), "x.npz"), *words)


# --- the engine

RULES = (*linear("fc", "ours"), copy("a|b", "free"), ignore("n", "no use"))
SOURCE = {"fc.weight": normal(3, 2), "fc.bias": normal(3), "a": normal(4), "n": normal(1)}
WANTED = {"ours.kernel": (2, 3), "ours.bias": (3,), "free": (4,)}


def test_convert():
    out = convert(SOURCE, RULES, WANTED, "x")
    np.testing.assert_array_equal(out["ours.kernel"], SOURCE["fc.weight"].T)
    assert out.keys() == WANTED.keys() and out["ours.kernel"].flags.c_contiguous


def test_convert_makes_float32():
    out = convert({n: v.astype(np.float64) for n, v in SOURCE.items()}, RULES, WANTED, "x")
    assert {value.dtype for value in out.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("source", "wanted", "words"),
    [
        (SOURCE | {"z": normal(1)}, WANTED, "1 not understood (z)"),
        (SOURCE | {"b": normal(4)}, WANTED, "1 given twice (free)"),
        (SOURCE, without(WANTED, "free"), "1 unknown to the model (free)"),
        (without(SOURCE, "a"), WANTED, "1 without a source (free)"),
        (SOURCE | {"a": normal(5)}, WANTED, "1 of another shape (free (5,) instead of (4,))"),
    ],
)
def test_each_kind_of_mismatch_is_named(source, wanted, words):
    message = refused(lambda: convert(source, RULES, wanted, "file.npz"))
    assert message == f"file.npz: cannot convert: {words}"


def test_all_mismatches_are_named_at_once():
    source = {"a": normal(4), "b": normal(4), "fc.weight": normal(5, 2), "z": normal(1)}
    wanted = {"ours.kernel": (2, 3), "ours.bias": (3,)}
    words = ["not understood (z)", "given twice (free)", "unknown to the model (free)"]
    words += ["without a source (ours.bias)", "of another shape (ours.kernel (2, 5)"]
    refused(lambda: convert(source, RULES, wanted, "x"), *words)


def test_long_lists_are_cut():
    source = {f"z{i}": normal(1) for i in range(8)}
    message = refused(lambda: convert(source, (), {}, "x"), "8 not understood", "and 3 more")
    assert "z4" in message and "z5" not in message


def test_an_array_that_a_rule_cannot_turn_is_named():
    rule = Rule("w", ("k",), lambda x: (x.transpose(2, 3, 1, 0),))
    call = {"w": normal(2, 2)}, (rule,), {"k": (1, 1, 2, 2)}, "x"
    refused(lambda: convert(*call), "1 of another shape (w (2, 2))")


# --- heads


def test_atm_rules_unpack_the_self_attention_in_order():
    packed = np.arange(3 * 4 * 4, dtype=np.float32).reshape(12, 4)
    name = "head.decoder.layers.2.self_attn.in_proj_weight"
    (rule,) = [
        rule for rule in atm_rules(r"head\.", "heads.1.") if re.fullmatch(rule.pattern, name)
    ]
    for part, target, rows in zip(rule.change(packed), rule.targets, range(0, 12, 4), strict=True):
        np.testing.assert_array_equal(part, packed[rows : rows + 4].T)
        assert target.startswith(r"heads.1.decoder.layers.\1.self_attn.")
    assert [target.split(".")[-2] for target in rule.targets] == ["q", "k", "v"]


def test_conv_rules_bring_the_running_statistics():
    source = {
        "convs.0.conv.weight": normal(4, 3, 1, 1),
        "convs.0.bn.weight": normal(4),
        "convs.0.bn.bias": normal(4),
        "convs.0.bn.running_mean": normal(4),
        "convs.0.bn.running_var": normal(4),
        "convs.0.bn.num_batches_tracked": np.array(7),
        "conv_seg.weight": normal(2, 4, 1, 1),
        "conv_seg.bias": normal(2),
    }
    wanted = {f"h.bns.0.{n}": (4,) for n in ("scale", "bias", "mean", "var")}
    wanted |= {
        "h.convs.0.kernel": (1, 1, 3, 4),
        "h.classify.kernel": (4, 2),
        "h.classify.bias": (2,),
    }
    out = convert(source, conv_rules("", "h."), wanted, "x")
    np.testing.assert_array_equal(out["h.bns.0.var"], source["convs.0.bn.running_var"])
    kernel = out["h.convs.0.kernel"]
    np.testing.assert_array_equal(kernel[0, 0], source["convs.0.conv.weight"][:, :, 0, 0].T)
    source["conv_seg.weight"] = normal(2, 4, 3, 3)
    words = "1 of another shape (conv_seg.weight (2, 4, 3, 3))"
    refused(lambda: convert(source, conv_rules("", "h."), wanted, "x"), words)


# --- what a run starts from


def segmenter(classes=5, grid=(3, 3), width=WIDTH, class_token=True):
    vit = dataclasses.replace(VIT, grid=grid, width=width, class_token=class_token)
    heads = (HeadSpec((0,), ConvSpec(classes, 8)), HeadSpec((1,), AtmSpec(classes, 8, 2, 1)))
    spec = SegmenterSpec(vit, heads)
    return spec, *draw(*shapes(spec), seed=3)


def test_start_from_npz_takes_the_backbone_and_keeps_the_heads(tmp_path):
    spec, params, stats = segmenter()
    path, timm = str(tmp_path / "vit.npz"), timm_state()
    np.savez(path, **timm)
    started, same, note = start_from(path, spec, params, stats)
    assert started.keys() == params.keys() and same.keys() == stats.keys()
    vit = convert_vit(timm, spec.vit, vit_shapes(spec.vit), path)
    for name in params:
        expected = vit[name] if name.startswith("vit.") else params[name]
        np.testing.assert_array_equal(started[name], expected)
    assert note == f"backbone ({len(vit)} arrays) from {path}"


def saved(tmp_path, **changes):
    """A weights file of a trained model: everything differs from the fresh numbers."""
    spec, params, stats = segmenter(**changes)
    arrays = {n: v + 1 for n, v in (params | stats).items()}
    path = str(tmp_path / "weights.safetensors")
    save_weights(path, arrays, {})
    return path, arrays


def test_start_from_a_vit_of_another_program_in_safetensors(tmp_path):
    path, timm = str(tmp_path / "vit.safetensors"), timm_state()
    save_weights(path, timm, {})
    spec, params, stats = segmenter()
    started, _, note = start_from(path, spec, params, stats)
    for name, value in convert_vit(timm, spec.vit, vit_shapes(spec.vit), path).items():
        np.testing.assert_array_equal(started[name], value)
    assert note.startswith("backbone (")


def test_start_from_safetensors_takes_everything(tmp_path):
    path, arrays = saved(tmp_path)
    started, stats, note = start_from(path, *segmenter())
    for name, value in (started | stats).items():
        np.testing.assert_array_equal(value, arrays[name])
    assert note == f"{len(arrays)} of {len(arrays)} arrays from {path}"


def test_another_class_count_keeps_the_fresh_classifier(tmp_path):
    path, arrays = saved(tmp_path, classes=7)
    spec, params, stats = segmenter(classes=5)
    started, _, note = start_from(path, spec, params, stats)
    fresh = {"heads.0.classify.kernel", "heads.0.classify.bias", "heads.1.queries"}
    for name, value in started.items():
        expected = params[name] if name in fresh else arrays[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert f"{len(arrays) - 3} of {len(arrays)}" in note
    assert all(name in note for name in fresh)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_another_number_of_heads_the_last_one_starts_the_last(tmp_path, count):
    def of(count):
        taps = (*range(count - 1), 3)
        heads = tuple(HeadSpec((tap,), AtmSpec(5, 8, 2, 1)) for tap in taps)
        spec = SegmenterSpec(dataclasses.replace(VIT, depth=4), heads)
        return spec, *draw(*shapes(spec), seed=3)

    _, params, _ = of(3)
    path = str(tmp_path / "weights.safetensors")
    save_weights(path, {n: v + float(1 + n.startswith("heads.2.")) for n, v in params.items()}, {})
    spec, fresh, stats = of(count)
    started, _, note = start_from(path, spec, fresh, stats)
    for name, value in started.items():
        auxiliary = name.startswith("heads.") and not name.startswith(f"heads.{count - 1}.")
        last = name.replace(f"heads.{count - 1}.", "heads.2.")
        more = 0 if auxiliary else 1 + last.startswith("heads.2.")
        expected = fresh[name] if auxiliary else params[last] + more
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert ("fresh: heads.0." in note) == (count > 1)


def test_another_grid_is_resized(tmp_path):
    path, arrays = saved(tmp_path, grid=(6, 5))
    started, _, _ = start_from(path, *segmenter())
    expected = resize_position_embedding(arrays["vit.pos_embed"], (3, 3))
    np.testing.assert_array_equal(started["vit.pos_embed"], expected)


def test_half_precision_weights_become_float32(tmp_path):
    spec, params, stats = segmenter()
    path = str(tmp_path / "half.safetensors")
    save_weights(path, {n: v.astype(np.float16) for n, v in params.items()}, {})
    started, _, _ = start_from(path, spec, params, stats)
    assert {value.dtype for value in started.values()} == {np.dtype(np.float32)}


def test_files_that_cannot_start_a_run(tmp_path):
    here = segmenter()
    wide, _ = saved(tmp_path, width=24)
    refused(lambda: start_from(wide, *here), "arrays of the backbone", "depth 2 and width 12")
    half = tmp_path / "half.safetensors"
    save_weights(half, {n: v for n, v in here[1].items() if ".blocks.1." not in n}, {})
    refused(lambda: start_from(str(half), *here), "12 arrays of the backbone (vit.blocks.1")
    refused(lambda: start_from(str(tmp_path / "none.npz"), *here), "none.npz: no such file")
    other = tmp_path / "weights.h5"
    other.write_bytes(b"x")
    refused(lambda: start_from(str(other), *here), "weights.h5", "give a .npz, a .safetensors")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez_compressed(path, **timm_state())
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    cut = good[: len(good) // 2]
    for bad in (b"", b"PK", b"not a zip file", cut, bytes(flipped), array.read_bytes()):
        path.write_bytes(bad)
        refused(lambda: start_from(str(path), *segmenter()), "vit.npz", "not a readable .npz")


class Explosive:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran code of the file')",)


def test_pickles_in_npz_files_are_never_run(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(path, **timm_state(), extra=np.array([Explosive()], dtype=object))
    refused(lambda: start_from(str(path), *segmenter()), "not a readable .npz")
    path.write_bytes(pickle.dumps(Explosive()))
    refused(lambda: start_from(str(path), *segmenter()), "not a readable .npz")
