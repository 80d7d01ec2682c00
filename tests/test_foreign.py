"""Foreign checkpoints: told by their names, configured as published, converted as a whole."""

import importlib

import numpy as np
import pytest
from foreign_states import (
    atm,
    cascade,
    mask_transformer,
    mmseg_mask_transformer,
    mmseg_vit,
    normal,
    policy_shapes,
    setr,
    timm_vit,
)

from jaxseg import build, published
from jaxseg.config import defaults
from jaxseg.convert import kinds
from jaxseg.errors import UserError
from jaxseg.foreign import model_of
from jaxseg.models.network import shapes
from jaxseg.models.vit import VARIANTS

WIDTHS = {"Ti": 12, "B": 24, "L": 32}
HEADS = ("auxiliary_head.0.", "auxiliary_head.1.", "decode_head.")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The variants as deep as they are, but narrow."""
    for name, (_, depth, _) in list(VARIANTS.items()):
        if name in WIDTHS:
            monkeypatch.setitem(VARIANTS, name, (WIDTHS[name], depth, WIDTHS[name] // 4))


def vit(variant, crop, **more):
    return mmseg_vit(WIDTHS[variant], VARIANTS[variant][1], (crop // 16) ** 2, **more)


def dtop(variant="B", classes=150, crop=512, heads=HEADS):
    width = WIDTHS[variant]
    state = vit(variant, crop)
    for head in heads:
        state |= atm(head, width, width // 2, classes)
    return state


def segvit(variant="B", classes=150, crop=512):
    return vit(variant, crop) | cascade(WIDTHS[variant], WIDTHS[variant] // 2, classes)


def setr_naive(variant="L", classes=150, crop=512, aux_convs=2, final_norm=False):
    state = vit(variant, crop, final_norm=final_norm)
    state |= setr("decode_head.", WIDTHS[variant], 16, classes)
    for i in range(3):
        state |= setr(f"auxiliary_head.{i}.", WIDTHS[variant], 16, classes, convs=aux_convs)
    return state


def setr_pup(classes=150, crop=512, aux_convs=1):
    """Heads of 3x3 convolutions, the last of four."""
    state = vit("L", crop) | setr("decode_head.", WIDTHS["L"], 16, classes, convs=4, kernel=3)
    for i in range(3):
        head = f"auxiliary_head.{i}."
        state |= setr(head, WIDTHS["L"], 16, classes, convs=aux_convs, kernel=3)
    return state


def segmenter(variant="Ti", classes=150, crop=512):
    width, depth, _ = VARIANTS[variant]
    state = timm_vit(width, depth, (crop // 16) ** 2, prefix="encoder.")
    return state | mask_transformer(width, classes)


def cts():
    """Segmenter and the policy network beside it."""
    return segmenter() | {f"policy_net.{n}": normal(*s) for n, s in policy_shapes().items()}


def mmseg_segmenter(variant="Ti", classes=150, crop=512):
    state = vit(variant, crop, final_norm=True)
    return state | mmseg_mask_transformer(WIDTHS[variant], classes)


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def without(state, *names):
    return {n: v for n, v in state.items() if n not in names}


# --- the published models

PUBLISHED = {  # state: and the configuration of this repository that is its recipe, if there is one
    "dtop B": (lambda: dtop(), "segvit_vitb_ade20k"),
    "dtop L": (lambda: dtop("L", 150, 640), "segvit_vitl_ade20k"),
    "dtop L 171": (lambda: dtop("L", 171, 512), "segvit_vitl_coco_stuff10k"),
    "dtop L 59": (lambda: dtop("L", 59, 480), "segvit_vitl_pascal_context"),
    "segvit B": (lambda: segvit(), "segvit_v1_vitb_ade20k"),
    "segvit L": (lambda: segvit("L", 150, 640), "segvit_v1_vitl_ade20k"),
    "segvit L 60": (lambda: segvit("L", 60, 480), None),
    "setr L": (lambda: setr_naive(), None),
    "setr L 19": (lambda: setr_naive("L", 19, 768, aux_convs=1), None),
    "setr B": (lambda: setr_naive("B", aux_convs=1, final_norm=True), None),
    "setr pup L": (lambda: setr_pup(), None),
    "setr pup L 19": (lambda: setr_pup(19, 768), None),
    "setr pup, two convolutions": (lambda: setr_pup(aux_convs=2), None),
    "segmenter": (lambda: segmenter(), None),
    "cts": (lambda: cts(), None),
    "mmseg_segmenter": (lambda: mmseg_segmenter(), None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_need_no_configuration(name):
    """Strict both ways, so every parameter of what the configuration builds is there."""
    make, config_name = PUBLISHED[name]
    state = make()
    model = model_of(state, None, "x.pth")
    spec = build.segmenter_spec(model.config, len(model.classes))
    wanted = {n: s.shape for part in shapes(spec) for n, s in part.items()}
    assert {n: a.shape for n, a in model.arrays.items()} == wanted
    sides = model.config.data.crop + model.config.eval.crop
    assert {side // 16 for side in sides} == set(model.arrays["vit.pos_embed"].shape[:2])
    if config_name is None:
        return
    config = importlib.import_module(f"configs.{config_name}").get_config()
    ours = dict(model.config.model) | {"head_width": config.model.head_width}
    assert ours | {"drop_path": config.model.drop_path} == dict(config.model)
    for part, fields in (
        ("data", ("name", "val", "test", "crop", "mean", "std")),
        ("eval", ("resize", "mode", "crop", "stride", "scales", "flip")),
    ):
        for field in fields:
            assert model.config[part][field] == config[part][field], (part, field)


def test_the_arrays_of_dtop_go_where_they_belong():
    state = dtop()
    model = model_of(state, None, "x.pth")
    ours = model.arrays
    for i, head in enumerate(HEADS):
        np.testing.assert_array_equal(ours[f"heads.{i}.queries"], state[head + "q.weight"])
        name = "decoder.layers.1.self_attn."
        packed = state[f"{head}{name}in_proj_weight"]
        kernel = ours[f"heads.{i}.{name}k.kernel"]
        np.testing.assert_array_equal(kernel, packed[12:24].T)
    positions = state["backbone.pos_embed"][0, 1:].reshape(32, 32, 24)
    np.testing.assert_array_equal(ours["vit.pos_embed"], positions)
    ignored = dict(model.ignored)
    assert set(ignored) == {
        "backbone.cls_token",
        *(f"{head}loss_decode.criterion.empty_weight" for head in HEADS),
    }
    assert "before its first block" in ignored["backbone.cls_token"]


def test_setr_has_a_class_token_and_auxiliary_heads_of_their_own_size():
    state = setr_naive()
    model = model_of(state, None, "x.pth")
    fields = model.config.model
    assert fields.taps == (9, 14, 19, 23) and fields.class_token and not fields.final_norm
    assert (fields.head, fields.head_width, fields.head_layers) == ("conv", 16, 1)
    assert (fields.aux_head, fields.aux_head_width, fields.aux_head_layers) == ("conv", 16, 2)
    assert fields.head_up_scale == 4
    token = state["backbone.cls_token"][0, 0] + state["backbone.pos_embed"][0, 0]
    np.testing.assert_array_equal(model.arrays["vit.class_token"], token)
    var = state["auxiliary_head.2.up_convs.1.0.bn.running_var"]
    np.testing.assert_array_equal(model.arrays["heads.2.bns.1.var"], var)
    assert len(model.ignored) == 7 and all("num_batches" in name for name, _ in model.ignored)
    with_norm = model_of(setr_naive("B", aux_convs=1, final_norm=True), None, "x.pth")
    assert with_norm.config.model.final_norm and with_norm.config.model.aux_head == ""


def test_setr_pup_is_told_by_its_kernels():
    state = setr_pup()
    model = model_of(state, None, "x.pth")
    fields = model.config.model
    assert model.kind.title == "mmsegmentation's SETR-PUP"
    assert fields.taps == (9, 14, 19, 23) and fields.class_token and not fields.final_norm
    sizes = [head.sizes for head in build.segmenter_spec(model.config, 150).heads]
    assert [(s.convs, s.kernel, s.up_scale) for s in sizes] == [(1, 3, 4)] * 3 + [(4, 3, 2)]
    assert [s.weight for s in sizes] == [0.4, 0.4, 0.4, 1.0]
    theirs = state["decode_head.up_convs.3.0.conv.weight"]  # [out, in, row, column]
    kernel = model.arrays["heads.3.convs.3.kernel"]
    assert kernel[0, 2, 5, 7] == theirs[7, 5, 0, 2]
    assert len(model.ignored) == 7 and all("num_batches" in name for name, _ in model.ignored)


def test_setr_pup_that_misses_or_has_too_much_is_refused():
    words = ["1 not understood (decode_head.up_convs.3.1.x)", "1 without a source"]
    state = without(setr_pup(), "auxiliary_head.1.up_convs.0.0.bn.running_var")
    state["decode_head.up_convs.3.1.x"] = normal(1)
    refused(lambda: model_of(state, None, "x"), *words, "heads.1.bns.0.var")
    mixed = setr_pup() | setr("auxiliary_head.2.", WIDTHS["L"], 16, 150, kernel=1)
    words = ["heads.2.convs.0.kernel (1, 1, 32, 16) instead of (3, 3, 32, 16)"]
    refused(lambda: model_of(mixed, None, "x"), *words)
    config = own_config(variant="L", head="conv", taps=(5, 7, 11, 23), class_token=True)
    words = ["config.model.head_kernel=1 instead of 3"]
    refused(lambda: model_of(setr_pup(), config, "x"), *words)


def test_segvit_counts_its_levels_from_the_deepest():
    state = segvit()
    model = model_of(state, None, "x.pth")
    kernel = model.arrays["heads.0.decoders.2.input_proj.kernel"]
    np.testing.assert_array_equal(kernel, state["decode_head.input_proj_3.weight"].T)
    assert model.config.model.taps == (5, 7, 11)


def test_segmenter_has_another_epsilon():
    state = segmenter()
    model = model_of(state, None, "x.pth")
    fields = model.config.model
    assert (fields.norm_epsilon, fields.head, fields.taps) == (1e-5, "mask_transformer", (11,))
    assert fields.class_token and fields.final_norm
    np.testing.assert_array_equal(model.arrays["vit.norm.scale"], state["encoder.norm.weight"])
    assert {name for name, _ in model.ignored} == {"encoder.head.weight", "encoder.head.bias"}
    assert model_of(mmseg_segmenter(), None, "x.pth").config.model.norm_epsilon == 1e-6


def test_cts_brings_its_policy():
    state = cts()
    model = model_of(state, None, "x.pth")
    assert (model.config.method.merge, model.config.method.windows) == ("cts", 103)
    np.testing.assert_array_equal(
        model.arrays["policy.head.kernel"], state["policy_net.head.weight"][:, :, 0, 0].T
    )
    assert {name.rsplit(".", 1)[-1] for name, _ in model.ignored if "policy" in name} == {
        "num_batches_tracked"
    }
    refused(lambda: model_of(state, segmenter_config(), "x"), "config.method.merge='none'")
    refused(lambda: model_of(segmenter(), model.config, "x"), "config.method.merge='cts'")


def segmenter_config():
    return model_of(segmenter(), None, "x.pth").config


def test_class_names():
    for count in (150, 171, 59, 60, 19, 7):
        classes = published.classes_of(count)
        assert len(classes) == len(set(classes.names)) == count
    sixty = published.classes_of(60).names
    assert sixty[0] == "background" and sixty[1:] == published.classes_of(59).names
    cityscapes = published.classes_of(19)
    assert cityscapes.names[6] == "traffic light" and cityscapes.colours[6] == (250, 170, 30)
    assert published.classes_of(7).names[6] == "class 6"


# --- a configuration that the user gives


def own_config(**fields):
    config = defaults()
    config.model.update(taps=(5, 7, 11), head_width=12, head_heads=3)
    config.data.crop = (512, 512)
    config.model.update(fields)
    return config


def test_a_given_configuration_is_taken_as_it_is():
    config = own_config()
    model = model_of(dtop(classes=7), config, "x.pth")
    assert model.config is config and model.classes.names[:2] == ("class 0", "class 1")


def test_a_given_grid_tells_what_positions_alone_do_not():
    """256 positions may be 16 x 16 or 8 x 32."""
    config, state = own_config(), dtop(crop=256, classes=7)
    config.data.crop = (128, 512)
    ours = model_of(state, config, "x.pth").arrays["vit.pos_embed"]
    positions = state["backbone.pos_embed"][0, 1:].reshape(8, 32, 24)
    np.testing.assert_array_equal(ours, positions)
    config.data.crop = (512, 512)  # of another size: resized
    assert model_of(state, config, "x.pth").arrays["vit.pos_embed"].shape == (32, 32, 24)


def test_a_given_configuration_that_does_not_fit_is_refused():
    def call(**fields):
        return lambda: model_of(dtop(classes=7), own_config(**fields), "x.pth")

    message = refused(call(variant="L", head="cascade", class_token=True, taps=(5, 11)))
    assert message == (
        "x.pth: --config does not fit: config.model.variant='L' instead of 'B'; "
        "config.model.head='cascade' instead of 'atm'; "
        "config.model.class_token=True instead of False; "
        "config.model.taps=(5, 11) instead of 3 taps"
    )
    refused(call(head_width=24), "cannot convert", "heads.0.queries (7, 12) instead of (7, 24)")
    config = own_config(head="mask_transformer", taps=(11,), class_token=True, final_norm=True)
    config.model.variant = "Ti"
    refused(lambda: model_of(segmenter(classes=7), config, "x"), "norm_epsilon=1e-06 instead of")


def test_what_nobody_published_needs_a_configuration():
    for state, *words in (
        (dtop(classes=7), "DToP's SegViT with ViT-B, 7 classes, crops of 512 pixels and 3 taps"),
        (dtop(crop=256), "crops of 256 pixels"),
        (dtop(heads=("auxiliary_head.0.", "decode_head.")), "2 taps"),
    ):
        refused(lambda state=state: model_of(state, None, "x.pth"), "--config=", *words)
    state = dtop()
    state["backbone.pos_embed"] = normal(1, 1 + 20, 24)
    refused(lambda: model_of(state, None, "x.pth"), "crops that are no squares")


# --- what is refused


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: {}, ["of no known kind", "SETR-Naive"]),
        (lambda: {"conv1.weight": normal(3)}, ["of no known kind (conv1.weight ...)"]),
        (lambda: vit("B", 512), ["of no known kind (backbone.cls_token"]),
        (lambda: vit("B", 512) | {"neck.x": normal(1)}, ["SETR-MLA", "neck.x"]),
        (lambda: segvit() | {"decode_head.atm.q.weight": normal(1)}, ["Shrunk"]),
        (lambda: segmenter() | {"encoder.dist_token": normal(1)}, ["distilled DeiT"]),
        (lambda: segmenter() | {"policy_net.x": normal(1)}, ["not understood (policy_net.x)"]),
        (
            lambda: vit("L", 512) | setr("decode_head.", 32, 16, 150, 4, 5),
            ["5x5 convolution", "neither mmsegmentation's SETR-Naive nor"],
        ),
        (lambda: dtop() | {"extra": normal(1)}, ["1 not understood (extra)"]),
        (
            lambda: without(setr_naive(), "decode_head.conv_seg.bias"),
            ["1 without a source (heads.3.classify.bias)"],
        ),
        (lambda: without(dtop(), "decode_head.q.weight"), ["has no decode_head.q.weight"]),
        (lambda: dtop() | {"decode_head.q.weight": normal(5)}, ["decode_head.q.weight", "2 axes"]),
        (lambda: dtop() | {"backbone.pos_embed": normal(5)}, ["backbone.pos_embed", "3 axes"]),
        (
            lambda: mmseg_vit(20, 3, 16) | atm("decode_head.", 20, 12, 150),
            ["no config.model.variant is a ViT of width 20 and depth 3"],
        ),
    ],
)
def test_checkpoints_that_cannot_be_converted_are_refused(state, words):
    refused(lambda: model_of(state(), None, "x.pth"), "x.pth: ", *words)


def test_mismatches_of_backbone_and_heads_are_named_together():
    state = without(dtop(), "backbone.layers.3.ln1.bias", "decode_head.class_embed.bias")
    state["auxiliary_head.0.proj_norm.weight"] = normal(5)
    words = ["vit.blocks.3.norm1.bias", "heads.2.class_embed.bias", "2 without a source"]
    refused(lambda: model_of(state, None, "x.pth"), *words, "heads.0.decoder.input_norm.scale (5,)")


# --- a ViT alone


def test_a_vit_alone_may_have_any_size_and_keeps_everything():
    state = timm_vit(20, 3, 16)
    model = model_of(state, None, "x.npz")
    assert model.config is None and model.classes is None
    assert model.arrays["vit.pos_embed"].shape == (4, 4, 20)
    assert {"vit.class_token", "vit.norm.scale", "vit.blocks.2.mlp.fc2.bias"} < set(model.arrays)
    assert {name for name, _ in model.ignored} == {"head.weight", "head.bias"}
    mmseg = model_of(mmseg_vit(20, 3, 16, prefix=""), None, "x.npz")
    assert mmseg.kind.layout is kinds.MMSEG and "vit.norm.scale" not in mmseg.arrays


def test_a_vit_alone_takes_no_configuration():
    state = timm_vit(20, 3, 16)
    refused(lambda: model_of(state, defaults(), "x.npz"), "leave --config out")
    state["pos_embed"] = normal(1, 1 + 20, 20)
    refused(lambda: model_of(state, None, "x.npz"), "pos_embed has 20 positions")
