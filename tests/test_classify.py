"""Classification: methods with a class head, released weights, counting, the commands."""

import dataclasses
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import CLASS_TOKEN, images, numbers, same

import eval as eval_program
import train as train_program
from jaxseg import build, class_eval, foreign
from jaxseg.bypass import Choice
from jaxseg.convert.files import read_arrays
from jaxseg.convert.start import start_from
from jaxseg.data import class_transforms
from jaxseg.data.images import read_image
from jaxseg.data.transforms import normalise
from jaxseg.errors import UserError
from jaxseg.execute import Masked
from jaxseg.methods import ats, dynamicvit, evit, evovit, svit
from jaxseg.models.classifier import ClassSpec
from jaxseg.models.initial import draw
from jaxseg.models.macs import dense_macs, fixed_tokens, pruned_macs
from jaxseg.models.network import network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.models.vit import ViTSpec
from jaxseg.tasks import classify
from jaxseg.tools.flops import counted

SHARED = pathlib.Path(__file__).parents[2] / "shared"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "F5_timm_vit.npz"
VIT = dataclasses.replace(CLASS_TOKEN, depth=2)  # small: programs take long to compile
HEAD = (HeadSpec((1,), ClassSpec(5)),)
EARLY = {"layers": (2,), "keep": (0.5,)}
METHODS = {
    "svit": svit.Skip(**EARLY),
    "dynamicvit": dynamicvit.Drop(**EARLY),
    "evit": evit.Fuse(**EARLY),
    "evovit": evovit.Wait(**EARLY),
    "ats": ats.Sample(**EARLY),
}


def config_of(name: str, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(changes)
    return config


# --- the network


@pytest.mark.parametrize("name", METHODS)
def test_executors_agree_and_an_image_is_alone_in_its_batch(name):
    spec = SparseSpec(VIT, HEAD, method=METHODS[name])
    net, arrays, batch = network(spec), numbers(spec), images(3)
    reference, ours = net.program(Masked())(arrays, batch), net.program()
    assert reference.scores.shape == (3, 1, 1, 5)
    alive = np.asarray(reference.alive)
    assert (alive[:, -1] < alive[:, 0]).all(), "the case shows nothing"
    same(ours(arrays, batch), reference)
    alone = ours(arrays, batch[1:2])
    np.testing.assert_array_equal(alone.alive[0], alive[1])
    np.testing.assert_allclose(alone.scores[0], reference.scores[1], atol=2e-5)


def test_everybody_chosen_is_the_dense_network():
    plain = SegmenterSpec(VIT, HEAD)
    spec = SparseSpec(VIT, HEAD, method=METHODS["dynamicvit"])
    arrays = numbers(spec)
    own = {n: arrays[n] for part in shapes(plain) for n in part}
    ours, theirs = (network(s.dense()).program() for s in (spec, plain))
    np.testing.assert_array_equal(ours(arrays, images(3)).scores, theirs(own, images(3)).scores)


def test_dense_logits_are_timms(tmp_path):
    with np.load(GOLDEN) as data:
        names = [name for name in data if name.startswith("weights/")]
        state = {name.removeprefix("weights/"): data[name] for name in names}
        image, logits = data["in/image"], data["out/native/logits"]
    np.savez(tmp_path / "timm.npz", **state)
    vit = ViTSpec(72, 3, 3, grid=(4, 4), class_token=True, final_norm=True)
    spec = SegmenterSpec(vit, (HeadSpec((2,), ClassSpec(10)),))
    arrays, _, note = start_from(str(tmp_path / "timm.npz"), spec, *draw(*shapes(spec), seed=0))
    assert note.startswith(f"backbone, heads.0 ({len(arrays)} arrays)")
    image = image.transpose(0, 2, 3, 1).astype(np.float32)
    ours = network(spec).program()(arrays, image).scores
    np.testing.assert_allclose(ours[:, 0, 0], logits, atol=4e-5)


def test_losses_by_hand():
    """Also that the teacher, like the student, is heard by its class token."""
    spec = SparseSpec(VIT, HEAD, method=dynamicvit.Drop((2,), (0.5,), distil=0.5))
    plain, net, arrays = SegmenterSpec(VIT, HEAD), network(spec), numbers(spec)
    own = {n: arrays[n] for part in shapes(plain) for n in part}
    params, stats = net.split(arrays)
    params |= spec.teacher_arrays({n: 1.1 * v for n, v in own.items()})
    labels, key = np.float32([[0, 1, 0, 0, 0], [0, 0, 0, 0.3, 0.7], [0.2] * 5]), jax.random.key(0)

    @jax.jit
    def both(params):
        model = net.bind(params, stats)
        return model.losses(images(3), labels, key=key), model(images(3), key=key)[-1].mask

    terms, mask = both(params)
    assert set(terms) == {"decode.loss_ce", "method.ratio", "distil.scores", "distil.features"}
    student = shares(mask[:, 0, 0])
    cross_entropy = -(labels * np.log(student)).sum(1).mean()
    assert float(terms["decode.loss_ce"].value()) == pytest.approx(cross_entropy, rel=1e-4)
    scores = network(plain).program()({n: 1.1 * v for n, v in own.items()}, images(3)).scores
    teacher = shares(scores[:, 0, 0])
    distance = 0.5 * (teacher * (np.log(teacher) - np.log(student))).sum(1).mean()
    assert float(terms["distil.scores"].value()) == pytest.approx(distance, rel=1e-3)


def shares(logits) -> np.ndarray:
    each = np.exp(np.asarray(logits))
    return each / each.sum(axis=1, keepdims=True)


# --- MACs


@pytest.mark.parametrize(
    ("name", "published", "ours", "tokens"),
    [  # SViT's tables 6 and 7, digits as printed; DynamicViT's repository says 2.9
        ("vits", 4.6, 4.608, [197]),
        ("svit_vits", 3.0, 2.953, [197] + [1 + 137] * 3 + [1 + 96] * 3 + [1 + 67] * 3),
        ("dynamicvit_vits", 3.0, 2.989, [197, 1 + 137, 1 + 96, 1 + 67]),
        ("evit_vits", 3.0, 3.036, [197, 1 + 138 + 1, 1 + 98 + 1, 1 + 70 + 1]),
        ("evovit_vits", 3.0, 3.040, [197] + [1 + 98] * 8),
    ],
)
def test_published_gmacs(name, published, ours, tokens):
    config = config_of(f"{name}_imagenet")
    config.method.selection = "static"  # SViT at its targets
    spec = build.classifier_spec(config, 1000)
    if isinstance(spec, SparseSpec):
        assert fixed_tokens(spec, (224, 224)) == tokens
    gmacs = counted(spec, (224, 224)).gmacs_all_heads
    assert round(gmacs, 1) == published
    assert gmacs == pytest.approx(ours, abs=1e-3)
    assert dense_macs(spec, (224, 224)).gmacs_all_heads == pytest.approx(4.608, abs=1e-3)


@pytest.mark.parametrize("name", ["svit_vits", "ats_vits"])
def test_what_depends_on_images_is_counted_dense(name):
    spec = build.classifier_spec(config_of(f"{name}_imagenet"), 1000)
    assert counted(spec, (224, 224)).gmacs_all_heads == pytest.approx(4.608, abs=1e-3)


# --- released weights


def svit_state() -> dict:
    """Names and shapes of the released SViT-S."""
    state = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384)}
    state |= {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}
    sizes = {"self_attn.in_proj_": (1152, 384), "self_attn.out_proj.": (384, 384)}
    sizes |= {"linear1.": (1536, 384), "linear2.": (384, 1536), "norm1.": (384,), "norm2.": (384,)}
    for i in range(12):
        for part, size in sizes.items():
            name = f"blocks.{i}.TransformerEncoderLayer.{part}"
            state |= {name + "weight": size, name + "bias": size[:1]}
    state |= {"norm.weight": (384,), "norm.bias": (384,)}
    state |= {"head.weight": (1000, 384), "head.bias": (1000,)}
    for j in range(9):
        gate = f"selective_modules.{j}."
        state |= {gate + "norm.weight": (384,), gate + "norm.bias": (384,)}
        state |= {gate + "mlp.fc1.weight": (96, 384), gate + "mlp.fc1.bias": (96,)}
        state |= {gate + "mlp.fc2.weight": (2, 96), gate + "mlp.fc2.bias": (2,)}
    return {name: np.zeros(size, np.float16) for name, size in state.items()}


def test_every_array_of_the_released_svit_is_used():
    state, config = svit_state(), config_of("svit_vits_imagenet")
    listed = SHARED / "facts" / "keys_svit_s_imagenet.tsv"
    if listed.is_file():
        lines = (line.split() for line in listed.read_text().splitlines() if line.strip())
        told = {name: tuple(map(int, size.split("x"))) for name, size in lines}
        assert {name: array.shape for name, array in state.items()} == told
    found = foreign.model_of(state, config, "svit")
    spec = build.classifier_spec(config, 1000)
    assert {n: a.shape for n, a in found.arrays.items()} == {
        n: s.shape for n, s in shapes(spec)[0].items()
    }
    assert not found.ignored and found.classes.names[0] == "n01440764"
    del state["selective_modules.8.mlp.fc2.bias"]
    with pytest.raises(UserError, match=r"without a source \(method.gates.8.fc2.bias"):
        foreign.model_of(state, config, "svit")
    state |= {"selective_modules.8.mlp.fc2.bias": np.zeros(2), "norm3.weight": np.zeros(1)}
    with pytest.raises(UserError, match=r"not understood \(norm3.weight\)"):
        foreign.model_of(state, config, "svit")


@dataclasses.dataclass(frozen=True)
class Likelier(svit.Skip):
    """The reference's evaluation: a token is kept where keeping is more probable."""

    def choose(self, gates, look) -> Choice:
        logits = gates[look.number](look.rows)
        return Choice(logits[..., 0] > logits[..., 1])


@pytest.mark.skipif(not (SHARED / "fixtures").is_dir(), reason="needs the reference files")
def test_logits_are_those_of_the_original_svit(tmp_path):
    with np.load(SHARED / "fixtures" / "F6_svit_block.npz") as data:
        start = "weights/full/"
        state = {n.removeprefix(start): data[n] for n in data if n.startswith(start)}
        image, logits = data["in/image_full"], data["out/full/logits"]
        masks = np.stack([data[f"out/full/mask{i}"] for i in range(3)], axis=1)
    np.savez(tmp_path / "svit.npz", **state)
    vit = ViTSpec(64, 4, 4, grid=(4, 4), class_token=True, final_norm=True, epsilon=1e-5)
    spec = SparseSpec(
        vit, (HeadSpec((3,), ClassSpec(6)),), method=Likelier((2, 3, 4), (0.7, 0.5, 0.35))
    )
    arrays, _, note = start_from(str(tmp_path / "svit.npz"), spec, *draw(*shapes(spec), seed=0))
    assert note.startswith(f"backbone, heads.0, method.gates ({len(arrays)} arrays)")
    image = image.transpose(0, 2, 3, 1).astype(np.float32)
    # Of the first image the original skips the class token, which here it does nowhere.
    assert masks[:, :, 0].tolist() == [[False, True, True], [True] * 3]
    ours = network(spec).program(Masked())(arrays, image)
    np.testing.assert_array_equal(ours.alive[1, 1:], masks[1].sum(axis=1))
    np.testing.assert_allclose(ours.scores[1, 0, 0], logits[1], atol=1e-4)


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="needs trained weights and photos")
def test_trained_weights_name_what_photos_show():
    path = SHARED / "weights" / "vit_tiny_patch16_224_augreg.npz"
    config = config_of("vits_imagenet", **{"model.variant": "Ti", "eval.crop_share": 0.9})
    config.data.mean = config.data.std = (127.5,) * 3
    model, how = foreign.model_of(read_arrays(path), config, "vit"), build.class_eval_spec(config)
    shown = {
        "sunhays80_002": "n04532670",
        "sunhays80_071": "n09472597",
        "urban100_077": "n03877845",
    }
    seen = [
        normalise(
            class_transforms.centre_crop(read_image(file), how.crop, how.share), how.mean, how.std
        )
        for file in (SHARED / "data" / "photos" / f"{name}.jpg" for name in shown)
    ]
    program = network(build.classifier_spec(config, 1000)).program()
    best = class_eval.best_classes(program(model.arrays, np.stack(seen)).scores)
    found = [model.classes.names[int(k)] for k in best[:, 0]]
    assert found == list(shown.values())  # a viaduct, a volcano, a palace


def augreg(classes: int) -> dict:
    """A small ViT as the original JAX code names it, with a classifier."""
    rng, width, vit = np.random.default_rng(0), 16, {}
    block = {"LayerNorm_0": 0, "LayerNorm_2": 0}
    for i in range(2):
        start = f"Transformer/encoderblock_{i}/"
        for name in block:
            vit |= {f"{start}{name}/{part}": (width,) for part in ("scale", "bias")}
        attention = start + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            vit |= {f"{attention}{part}/kernel": (width, 2, 8), f"{attention}{part}/bias": (2, 8)}
        vit |= {f"{attention}out/kernel": (2, 8, width), f"{attention}out/bias": (width,)}
        for j, (a, b) in enumerate(((width, 64), (64, width))):
            vit |= {f"{start}MlpBlock_3/Dense_{j}/kernel": (a, b)}
            vit |= {f"{start}MlpBlock_3/Dense_{j}/bias": (b,)}
    vit |= {f"Transformer/encoder_norm/{part}": (width,) for part in ("scale", "bias")}
    vit |= {"cls": (1, 1, width), "Transformer/posembed_input/pos_embedding": (1, 17, width)}
    vit |= {"embedding/kernel": (4, 4, 3, width), "embedding/bias": (width,)}
    vit |= {"head/kernel": (width, classes), "head/bias": (classes,)}
    return {name: rng.standard_normal(size, np.float32) for name, size in vit.items()}


def test_a_classifier_is_taken_where_it_fits(tmp_path):
    spec = SegmenterSpec(VIT, HEAD)
    fresh = draw(*shapes(spec), seed=0)

    def kernel(state):
        np.savez(tmp_path / "vit.npz", **state)
        return start_from(str(tmp_path / "vit.npz"), spec, *fresh)[0]["heads.0.linear.kernel"]

    np.testing.assert_array_equal(kernel(augreg(5)), augreg(5)["head/kernel"])
    for other in (augreg(6), augreg(5) | {"pre_logits/kernel": np.eye(16), "pre_logits/bias": [0]}):
        np.testing.assert_array_equal(kernel(other), fresh[0]["heads.0.linear.kernel"])
    with pytest.raises(UserError, match="alone has no configuration"):
        foreign.model_of(augreg(5), config_of("quickstart"), "vit")


def test_who_distils_needs_a_model_of_the_same_classes(tmp_path):
    np.savez(tmp_path / "vit.npz", **augreg(6))
    config = config_of("dynamicvit_vits_imagenet", init_from=str(tmp_path / "vit.npz"))
    method = dynamicvit.Drop((2,), (0.5,), distil=0.5)
    spec = SparseSpec(VIT, HEAD, method=method)
    with pytest.raises(UserError, match="no classifier of 5 classes"):
        classify.start(config, spec, *draw(*shapes(spec), seed=0))
    spec = dataclasses.replace(spec, heads=(HeadSpec((1,), ClassSpec(6)),))
    params, stats, _ = classify.start(config, spec, *draw(*shapes(spec), seed=0))
    assert "teacher.heads.0.linear.kernel" in build.teacher(config, spec, params | stats)


# --- counting


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from((3, 5, 9)))
def test_top_k_is_a_sort(seed, classes):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 6)
    best = np.asarray(class_eval.best_classes(jnp.asarray(scores)[:, None, None]))
    rank = (scores > scores[np.arange(6), labels][:, None]).sum(axis=1)
    assert class_eval.hits(best, labels).tolist() == [(rank < 1).sum(), (rank < 5).sum()]


def test_parts_of_a_set_add_up():
    parts = [
        class_eval.ClassResult(
            images=3, hits=np.array([1, 2]), alive=[[4, 2]], computed=4, seconds=2.0
        ),
        class_eval.ClassResult(
            images=1, hits=np.array([1, 1]), alive=[[4, 4]], computed=4, seconds=2.0
        ),
    ]
    whole = parts[0] + parts[1]
    assert (whole.top1, whole.top5, whole.images_per_second) == (0.5, 0.75, 2.0)
    # Attention is quadratic in the tokens: images are counted one by one.
    spec = SparseSpec(VIT, HEAD, method=METHODS["svit"])
    each = [pruned_macs(spec, (4, 12), row).gmacs_all_heads for row in whole.alive]
    assert classify.mean_gmacs(spec, whole, (4, 12)) == pytest.approx(np.mean(each))
    assert pruned_macs(spec, (4, 12), [4, 3]).gmacs_all_heads < np.mean(each)


def test_fields_that_do_not_fit_are_named():
    for name, changes, said in (
        ("vits", {"model.class_token": False}, "model.class_token=False"),
        ("vits", {"method.name": "dtop"}, "method.name='dtop'"),
        ("vits", {"method.merge": "cts"}, "method.merge='cts'"),
        ("vits", {"model.head": "atm"}, "model.head='atm'"),
    ):
        with pytest.raises(UserError, match=said):
            build.classifier_spec(config_of(f"{name}_imagenet", **changes), 5)
    for name, task in (("vits_imagenet", "classify"), ("policy_cts_camvid", "policy")):
        with pytest.raises(UserError, match=f"config.task='{task}'.*eval.py"):
            build.segmenter_spec(config_of(name), 5)
    config = config_of("vits_imagenet", **{"data.name": "folder"})
    for make in (lambda: build.class_recipe(config, 5), lambda: build.class_eval_spec(config)):
        with pytest.raises(UserError, match="data.name='folder'"):
            make()
    with pytest.raises(UserError, match="data.area"):
        build.class_recipe(config_of("vits_imagenet", **{"data.area": (0.5, 1.5)}), 5)
    with pytest.raises(UserError, match="crop_share"):
        build.class_eval_spec(config_of("vits_imagenet", **{"eval.crop_share": 0.0}))


# --- the commands


def textures(root: pathlib.Path, count: int, seed: int) -> None:
    """Three classes: bright, dark, and both in stripes."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(("bright", "dark", "striped")):
        root.joinpath(name).mkdir(parents=True)
        for i in range(count):
            level = np.full((40, 48, 1), (200, 60, 0)[k])
            if k == 2:
                level[:] = np.where(np.arange(48) // 8 % 2, 200, 60)[:, None]
            image = np.clip(level + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.png")


def test_training_raises_accuracy_and_eval_reports_it(tmp_path, capsys):
    textures(tmp_path / "data" / "train", 8, 0)
    textures(tmp_path / "data" / "val", 3, 1)
    config = importlib.import_module("configs.evit_vits_imagenet").get_config("smoke")
    config.data.update(name="class_folder", root=str(tmp_path / "data"), test="val")
    config.data.update(area=(0.5, 1.0))
    config.optim.update(lr=2e-3, no_decay=())
    config.train.update(batch_size=12, steps=30, log_every=30, checkpoint_every=30)
    config.eval.batch_size = 4  # 9 images: the last batch is filled up
    work = tmp_path / "work"
    train_program.train(config, str(work), "test")
    found = eval_program.evaluate(None, str(work))
    assert found["top1"] > 0.8 and found["top5"] == 1.0 and found["images"] == 9
    logged = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert logged[-2]["loss"] < logged[0]["loss"]
    assert found["gmacs_per_image"] < found["dense_gmacs_per_image"]
    assert found["tokens_per_stage"] == [17.0, 1 + 12 + 1, 1 + 7 + 1]
    assert found["efficiency"] == pytest.approx(found["speedup"] / found["flops_ratio"])
    assert json.loads((work / "results.json").read_text()) == found
    said = capsys.readouterr().out
    assert f"top-1 {100 * found['top1']:.2f} | top-5 100.00 | GMACs" in said
