"""Whole checkpoints through the command: folders that load, predict, and give the known numbers.

The reference files of tests/golden are put together to files named as real checkpoints are.
"""

import json
import pathlib
import subprocess
import sys

import fixture_parts
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_states import atm, cascade, mmseg_vit, timm_vit
from verify_fixture import load, tolerances

import jaxseg
from jaxseg.config import ConfigDict, defaults
from jaxseg.convert import kinds
from jaxseg.convert.start import start_from
from jaxseg.errors import UserError
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViT, ViTSpec
from jaxseg.tools import convert
from jaxseg.weights import load_weights, save_weights

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
FIXTURES = ROOT.parent / "shared" / "fixtures"
TRAINED = ROOT.parent / "shared" / "weights" / "vit_tiny_patch16_224_augreg.npz"


def golden(name, folder=GOLDEN):
    return load(folder / f"{name}.npz"), tolerances(folder / f"{name}.npz")


def agree(ours, data, tolerance, name):
    allowed = float(tolerance[f"out/{name}"])
    np.testing.assert_allclose(ours, data[f"out/{name}"], rtol=0, atol=allowed, err_msg=name)


def own_config(**fields) -> ConfigDict:
    config = defaults()
    config.data.crop = config.eval.crop = (64, 64)
    config.eval.stride, config.eval.resize = (42, 42), ()
    config.model.update(fields)
    return config


def predicts(model, classes):
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    labels = model.predict(image).labels
    assert labels.shape == (70, 100) and labels.max() < classes == len(model.classes)


def bound(model):
    net = network(model.spec)
    return net.bind(*net.split(model.arrays))


def command(source, out, *flags, before=""):
    """The command in a process of its own; ``before`` runs first in it."""
    code = f"{before}\nimport runpy\nrunpy.run_module('jaxseg.tools.convert', run_name='__main__')"
    words = [sys.executable, "-c", code, str(source), f"--out={out}", *flags]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


# --- the numbers of the original code


def test_dtop_from_the_command_line(tmp_path, monkeypatch):
    """F2 is a DToP model as a whole: backbone, an auxiliary head and the last one."""
    data, tolerance = golden("F2_dtop_full")
    source, out = tmp_path / "dtop.safetensors", tmp_path / "model"
    save_weights(source, fixture_parts.weights_below(data, "weights/"), {})
    config = tmp_path / "config.py"
    config.write_text(
        "from jaxseg.config import defaults\n"
        "def get_config():\n"
        "    config = defaults()\n"
        "    config.data.crop = config.eval.crop = (64, 64)\n"
        "    config.eval.stride, config.eval.resize = (42, 42), ()\n"
        "    config.model.update(variant='golden', patch=8, taps=(1, 3))\n"
        "    config.model.update(head_width=32, head_heads=4, head_layers=2)\n"
        "    return config\n"
    )
    variant = "from jaxseg.models.vit import VARIANTS\nVARIANTS['golden'] = (64, 4, 4)"
    flags = (f"--config={config}", "--licence=Some-1.0  (as\n stated)")
    done = command(source, out, *flags, before=variant)
    assert done.returncode == 0, done.stderr
    assert "DToP's SegViT, 7 classes, 169 arrays; 3 of the source ignored" in done.stdout

    monkeypatch.setitem(VARIANTS, "golden", (64, 4, 4))
    model = jaxseg.load(out)
    outputs = bound(model)(fixture_parts.images_of(data, "in/image"))
    for i, logits in enumerate(outputs):
        mask = logits.mask.reshape(2, 64, 7).swapaxes(1, 2)
        agree(mask, data, tolerance, f"noprune/stage{i}/mask_logits")
        agree(logits.classes, data, tolerance, f"noprune/stage{i}/cls_logits")
    predicts(model, 7)

    card = (out / "card.md").read_text()
    for words in (
        "# dtop.safetensors\n",
        "licence of the weights, as stated: Some-1.0 (as stated)\n",
        "As given with --config; 7 classes (class 0, class 1, class 2 ...)",
        "- model.taps = (1, 3)\n",
        "- class token that this model drops before its first block: backbone.cls_token\n",
        "- constant of the loss: auxiliary_head.0.loss_decode.criterion.empty_weight, ",
        "F2_dtop_full/noprune: outputs differed by at most",
        f"{source.stat().st_size} bytes",
    ):
        assert words in card, words
    assert str(tmp_path) not in card

    with pytest.raises(UserError, match=r"already holds a model\.safetensors"):
        convert.convert(source, out, None, "")


@pytest.mark.parametrize(
    ("name", "title", "fields"),
    [
        ("setr_naive", "SETR-Naive", {"head_layers": 1, "head_up_scale": 4}),
        ("setr_pup", "SETR-PUP", {"head_layers": 2, "head_up_scale": 2, "head_kernel": 3}),
    ],
)
def test_setr(tmp_path, monkeypatch, name, title, fields):
    """F1's ViT with class token and final norm under F4's head, as mmsegmentation names them."""
    monkeypatch.setitem(VARIANTS, "golden", (64, 3, 4))
    vit, vit_tolerance = golden("F1_vit_backbone")
    head, head_tolerance = golden("F4_heads")
    state = {f"backbone.{n}": v for n, v in fixture_parts.weights_below(vit, "weights/").items()}
    for prefix in ("auxiliary_head.0.", "decode_head."):
        weights = fixture_parts.weights_below(head, f"weights/{name}/")
        state |= {prefix + n: value for n, value in weights.items()}
    source, out = tmp_path / "setr.npz", tmp_path / "model"
    np.savez(source, **state)
    fields |= {"head": "conv", "head_width": 32}
    fields |= {"variant": "golden", "taps": (1, 2), "class_token": True, "final_norm": True}
    line = convert.convert(source, out, own_config(**fields), "")
    assert f"{title}, 7 classes" in line
    card = (out / "card.md").read_text()
    assert "as stated: not stated" in card and "decode_head.up_convs.0.0.bn.num_batches" in card

    model = jaxseg.load(out)
    predicts(model, 7)
    net = bound(model)
    images = fixture_parts.images_of(vit, "in/image_native")
    tokens = fixture_parts.run(net.vit, images, (2,))[2]
    maps = fixture_parts.to_maps(tokens[:, 1:], (4, 4))
    agree(maps, vit, vit_tolerance, "cls_norm/native/layer2")
    feature = head["in/feat2"]
    taps = [jnp.asarray(feature.reshape(*feature.shape[:2], -1).swapaxes(1, 2))]
    for each in net.heads:
        logits = fixture_parts.run_head(each, taps, feature.shape[2:])
        maps = each.grid_scores(logits, (64, 64)).transpose(0, 3, 1, 2)
        agree(maps, head, head_tolerance, f"{name}/head_logits")


def test_segvit(tmp_path, monkeypatch):
    """F3's cascade on any ViT of its width."""
    monkeypatch.setitem(VARIANTS, "golden", (48, 3, 4))
    data, tolerance = golden("F3_segvit_atm")
    weights = fixture_parts.weights_below(data, "weights/atm/")
    state = mmseg_vit(48, 3, 64, patch=8) | {f"decode_head.{n}": v for n, v in weights.items()}
    assert state.keys() == (mmseg_vit(48, 3, 64) | cascade(48, 32, 9, layers=2)).keys()
    source, out = tmp_path / "segvit.npz", tmp_path / "model"
    np.savez(source, **state)
    fields = {"head": "cascade", "head_width": 32, "head_heads": 4, "head_layers": 2}
    convert.convert(
        source, out, own_config(variant="golden", patch=8, taps=(0, 1, 2), **fields), ""
    )

    model = jaxseg.load(out)
    predicts(model, 9)
    features = [data[f"in/feat{i}"] for i in range(3)]
    taps = [jnp.asarray(f.reshape(*f.shape[:2], -1).swapaxes(1, 2)) for f in features]
    levels = fixture_parts.run_head(bound(model).heads[0], taps, (8, 8))
    for i, level in enumerate(levels[:-1]):
        agree(level.classes, data, tolerance, f"atm/aux{i}/pred_logits")
        agree(level.mask.transpose(0, 3, 1, 2), data, tolerance, f"atm/aux{i}/pred_masks")
    agree(levels[-1].classes, data, tolerance, "atm/pred_logits")


@pytest.mark.skipif(not FIXTURES.exists(), reason="the whole reference files are not here")
def test_segmenter(tmp_path, monkeypatch):
    """F7 is CTS's Segmenter; without sharing it is the Segmenter itself."""
    monkeypatch.setitem(VARIANTS, "golden", (64, 3, 4))
    data, tolerance = golden("F7_cts_sharing", FIXTURES)
    encoder = fixture_parts.weights_below(data, "weights/encoder/")
    state = {f"encoder.{n}": v for n, v in encoder.items() if "/" not in n}
    state["encoder.pos_embed"] = encoder["square/pos_embed"]
    decoder = fixture_parts.weights_below(data, "weights/decoder_mask/")
    state |= {f"decoder.{name}": value for name, value in decoder.items()}
    source, out = tmp_path / "segmenter.npz", tmp_path / "model"
    np.savez(source, **state)
    fields = {"head": "mask_transformer", "head_width": 64, "head_heads": 4, "head_layers": 2}
    fields |= {"variant": "golden", "taps": (2,), "class_token": True, "final_norm": True}
    config = own_config(norm_epsilon=1e-5, **fields)
    config.data.crop = (96, 96)
    convert.convert(source, out, config, "")

    model = jaxseg.load(out)
    predicts(model, 7)
    net, images = bound(model), fixture_parts.images_of(data, "in/square/image")
    tokens = fixture_parts.run(net.vit, images, (2,))[2]
    agree(tokens, data, tolerance, "square/noshare/encoder_out")
    (logits,) = net(images)
    maps = logits.mask.transpose(0, 3, 1, 2)
    agree(maps, data, tolerance, "square/noshare/mask_decoder_grid")


def vit_with(path, spec):
    arrays, _ = load_weights(path)
    return fixture_parts.bind(ViT(spec), {name[4:]: value for name, value in arrays.items()})


def test_a_timm_vit(tmp_path):
    data, tolerance = golden("F5_timm_vit")
    source, out = tmp_path / "vit.npz", tmp_path / "vit"
    np.savez(source, **fixture_parts.weights_below(data, "weights/"))
    assert "a timm ViT, 42 arrays; 2 of the source" in convert.convert(source, out, None, "")
    assert sorted(path.name for path in out.iterdir()) == ["card.md", "model.safetensors"]
    card = (out / "card.md").read_text()
    assert "A ViT alone, position embedding 4x4x72: no heads and no config.json" in card
    assert "- classifier of the pre-training: head.weight, head.bias\n" in card
    spec = ViTSpec(72, 3, 3, grid=(4, 4), class_token=True, final_norm=True)
    vit = vit_with(out / "model.safetensors", spec)
    tokens = fixture_parts.run(vit, fixture_parts.images_of(data, "in/image"), (2,))[2]
    agree(tokens, data, tolerance, "native/forward_features")
    with pytest.raises(UserError, match=r"no config\.json"):
        jaxseg.load(out)


def test_an_mmsegmentation_vit_starts_a_training(tmp_path):
    """Without class token and norm, which the folder has and the model does not need."""
    data, tolerance = golden("F1_vit_backbone")
    source, out = tmp_path / "vit.npz", tmp_path / "vit"
    np.savez(source, **fixture_parts.weights_below(data, "weights/"))
    convert.convert(source, out, None, "")
    sizes = ViTSpec(64, 3, 4, grid=(4, 4))
    spec = SegmenterSpec(sizes, (HeadSpec((2,), ConvSpec(2)),))
    params, stats = draw(*shapes(spec), seed=0)
    path = str(out / "model.safetensors")
    started, _, note = start_from(path, spec, params, stats)
    straight, _, _ = start_from(str(source), spec, params, stats)
    for name, value in straight.items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)
    vit = {n[4:]: v for n, v in started.items() if n.startswith("vit.")}
    images = fixture_parts.images_of(data, "in/image_native")
    tokens = fixture_parts.run(fixture_parts.bind(ViT(sizes), vit), images, (2,))[2]
    maps = fixture_parts.to_maps(tokens, (4, 4))
    agree(maps, data, tolerance, "nocls_nonorm/native/layer2")


@pytest.mark.skipif(not TRAINED.exists(), reason="no trained weights here")
def test_trained_weights(tmp_path):
    convert.convert(TRAINED, tmp_path / "vit", None, "")
    arrays, _ = load_weights(tmp_path / "vit" / "model.safetensors")
    with np.load(TRAINED, allow_pickle=False) as file:
        theirs = {name: file[name].astype(np.float32) for name in file.files}
    assert arrays["vit.pos_embed"].shape == (14, 14, 192)
    assert len(arrays) == len(theirs) - 2  # without the classifier
    used = sum(array.size for name, array in theirs.items() if not name.startswith("head."))
    assert sum(array.size for array in arrays.values()) == used - 192  # token + its position
    kernel = arrays["vit.blocks.11.mlp.fc2.kernel"]
    np.testing.assert_array_equal(kernel, theirs["blocks.11.mlp.fc2.weight"].T)


# --- nothing is written in vain


def test_a_mismatch_writes_nothing(tmp_path):
    state = timm_vit(24, 2, 16)
    del state["blocks.1.norm2.bias"]
    np.savez(tmp_path / "vit.npz", **state)
    with pytest.raises(UserError, match=r"vit\.blocks\.1\.norm2\.bias"):
        convert.convert(tmp_path / "vit.npz", tmp_path / "out", None, "")
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_must_be_named():
    for arguments in ([], ["a.npz", "b.npz"]):
        with pytest.raises(UserError, match=f"one checkpoint, not {len(arguments)}"):
            convert.main(arguments)


# --- what the card says about parity


def test_cards_state_what_the_reference_tests_allow():
    stated = {golden for kind in (*kinds.KINDS, *kinds.BARE) for golden in kind.golden}
    for file, part, error, allowed in stated:
        limits = []
        for folder in (GOLDEN, FIXTURES):  # a part that is not in the first is in the second
            if not limits and (folder / f"{file}.npz").exists():
                each = tolerances(folder / f"{file}.npz").items()
                limits = [
                    float(x) for n, x in each if n.startswith(f"out/{part}") and x[0].isdigit()
                ]
        assert allowed == max(limits, default=allowed), (file, part)
        assert error < allowed


def test_the_stored_configuration_is_data(tmp_path):
    """config.json is as training writes it: loading executes nothing and knows every field."""
    config = own_config(variant="smoke", taps=(2,), head_width=16, head_heads=2, head_layers=1)
    state = mmseg_vit(32, 3, 16) | atm("decode_head.", 32, 16, 5, layers=1)
    np.savez(tmp_path / "x.npz", **state)
    convert.convert(tmp_path / "x.npz", tmp_path / "out", config, "")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["config"]["model"]["taps"] == [2] and len(stored["classes"]["names"]) == 5
    predicts(jaxseg.load(tmp_path / "out"), 5)
