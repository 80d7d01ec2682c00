"""The mask transformer against a float64 form of its own, in every layout, and its weights."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import ALL, bind, module_shapes
from fixture_segmenter import cts_decoders, mmseg_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from verify_fixture import Check, load, tolerances

from jaxseg.convert import segmenter
from jaxseg.convert.rules import convert
from jaxseg.errors import UserError
from jaxseg.models import attention, mask_transformer
from jaxseg.models.attention import attend
from jaxseg.models.heads import Logits, pixel_scores
from jaxseg.models.mask_transformer import MaskSpec, MaskTransformerHead, mask_transformer_macs
from jaxseg.resize import resize_bilinear
from jaxseg.tokens import Packed, Rows

SHARED = pathlib.Path(__file__).parents[1].parent / "shared" / "fixtures"
WIDTH_IN, SPEC = 6, MaskSpec(classes=5, width=8, heads=2)
SLOTS = 9  # of each image in rows, class token included
BUFFER = 40  # slots of the packed layout


# --- the decoder once more, from torch's arrays, on the living patches of one image


def reference(state, tokens, xp, erf):
    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / xp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * state[name + ".weight"] + state[name + ".bias"]

    def linear(name, x):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def attention_of(name, x):
        parts = xp.split(linear(name + ".qkv", x), 3, axis=-1)
        q, k, v = (part.reshape(len(x), SPEC.heads, -1) for part in parts)
        scores = xp.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        weights = xp.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        return linear(name + ".proj", xp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape))

    x = xp.concatenate([linear("proj_dec", tokens), state["cls_emb"][0]])
    for i in range(SPEC.layers):
        block = f"blocks.{i}."
        x = x + attention_of(block + "attn", norm(block + "norm1", x))
        hidden = linear(block + "mlp.fc1", norm(block + "norm2", x))
        x = x + linear(block + "mlp.fc2", hidden * (1 + erf(hidden / math.sqrt(2))) / 2)
    x = norm("decoder_norm", x)
    patches, classes = x[: len(tokens)], x[len(tokens) :]
    patches, classes = patches @ state["proj_patch"], classes @ state["proj_classes"]
    patches = patches / xp.sqrt((patches * patches).sum(-1, keepdims=True))
    classes = classes / xp.sqrt((classes * classes).sum(-1, keepdims=True))
    return norm("mask_norm", patches @ classes.T)


def in_float64(tokens):
    wide = {name: value.astype(np.float64) for name, value in STATE.items()}
    return reference(wide, np.asarray(tokens, np.float64), np, np.vectorize(math.erf))


def torch_state(rng):
    """Random weights in Segmenter's layout."""
    width, hidden = SPEC.width, 4 * SPEC.width
    sizes = {"proj_dec": (width, WIDTH_IN)}
    norms = {"decoder_norm": width, "mask_norm": SPEC.classes}
    for i in range(SPEC.layers):
        block = f"blocks.{i}."
        sizes |= {block + "attn.qkv": (3 * width, width), block + "attn.proj": (width, width)}
        sizes |= {block + "mlp.fc1": (hidden, width), block + "mlp.fc2": (width, hidden)}
        norms |= {block + "norm1": width, block + "norm2": width}
    shapes = {"cls_emb": (1, SPEC.classes, width)}
    shapes |= {"proj_patch": (width, width), "proj_classes": (width, width)}
    for name, shape in sizes.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    for name, size in norms.items():
        shapes |= {name + ".weight": (size,), name + ".bias": (size,)}
    return {n: rng.normal(0, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}


STATE = torch_state(np.random.default_rng(0))
MODULE = MaskTransformerHead(WIDTH_IN, SPEC)
SHAPES = module_shapes(MODULE, "")
RULES = segmenter.mask_transformer_rules("", "")
PARAMS = convert(STATE, RULES, SHAPES, "test")


def head_of(params=PARAMS):
    return bind(MODULE, params)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rows_of(counts, prefix, seed=1):
    """Tokens [B, SLOTS, D], which of them live (the class token too), and only those that do."""
    rng, tokens = np.random.default_rng(seed), normal(len(counts), SLOTS, WIDTH_IN, seed=seed)
    valid = np.zeros((len(counts), SLOTS), bool)
    valid[:, :prefix] = True
    for row, count in zip(valid, counts, strict=True):
        row[prefix + rng.choice(SLOTS - prefix, count, replace=False)] = True
    return tokens, valid, [x[v] for x, v in zip(tokens, valid, strict=True)]


def packed_of(alive, prefix):
    """The same in one buffer, junk behind it."""
    count = np.array([len(x) for x in alive], np.int32)
    start = np.cumsum(count, dtype=np.int32) - count
    buffer = np.concatenate([*alive, normal(BUFFER - count.sum(), WIDTH_IN, seed=9)])
    return buffer, Packed(jnp.asarray(start), jnp.asarray(count), prefix, (4, SLOTS))


@jax.jit
def masks(tokens, layout, params=PARAMS):
    return head_of(params)((tokens,), layout).mask


@jax.jit
def masks_padded(tokens, layout):
    """Packed tokens in the form that accelerators use; only tracing looks at the patch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_packed", attention._padded)
        return head_of()((tokens,), layout).mask


# --- values


@pytest.mark.parametrize("prefix", [0, 1])
def test_the_formula_in_float64(prefix):
    """The ViT's class token is not looked at."""
    tokens = normal(2, SLOTS, WIDTH_IN)
    ours = masks(jnp.asarray(tokens), Rows(None, prefix))
    assert ours.shape == (2, SLOTS, SPEC.classes) and np.isfinite(ours).all()
    for image in range(2):
        expected = in_float64(tokens[image, prefix:])
        np.testing.assert_allclose(ours[image, prefix:], expected, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, SLOTS - 1), min_size=3, max_size=3), st.integers(0, 1))
def test_rows_and_packed_see_the_living_alone(counts, prefix):
    tokens, valid, alive = rows_of(counts, prefix, seed=sum(counts))
    in_rows = masks(jnp.asarray(tokens), Rows(jnp.asarray(valid), prefix))
    buffer, layout = packed_of(alive, prefix)
    packed = masks(jnp.asarray(buffer), layout)
    assert np.isfinite(in_rows).all() and np.isfinite(packed).all()
    for i, (x, begin) in enumerate(zip(alive, layout.start, strict=True)):
        expected = in_float64(x[prefix:])
        np.testing.assert_allclose(in_rows[i][valid[i]][prefix:], expected, atol=3e-5)
        np.testing.assert_allclose(packed[begin : begin + len(x)][prefix:], expected, atol=3e-5)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("counts", [(7, 1, 4), (8, 0, 1), (0, 8, 8)])
def test_padded_rows_agree_with_packed(counts, prefix):
    _, _, alive = rows_of(counts, prefix)
    buffer, layout = packed_of(alive, prefix)
    ours, used = masks_padded(buffer, layout), int(layout.used)
    assert np.isfinite(ours).all()
    patches = np.asarray(layout.patches(buffer))[:used]
    theirs = masks(jnp.asarray(buffer), layout)
    np.testing.assert_allclose(ours[:used][patches], theirs[:used][patches], atol=2e-5)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_dead_slots_matter_to_nobody(value):
    tokens, valid, _ = rows_of((7, 1, 4), 1)
    poisoned = np.where(valid[..., None], tokens, np.float32(value))
    poisoned[:, 0] = value  # the class token lives, but not for this head
    layout = Rows(jnp.asarray(valid), 1)
    ours, theirs = masks(jnp.asarray(poisoned), layout), masks(jnp.asarray(tokens), layout)
    np.testing.assert_allclose(ours[:, 1:][valid[:, 1:]], theirs[:, 1:][valid[:, 1:]], atol=1e-6)
    assert np.isfinite(ours).all()


def test_order_of_the_slots_does_not_matter():
    tokens, valid, _ = rows_of((7, 1, 4), 0)
    order = np.random.default_rng(2).permutation(SLOTS)
    ours = masks(jnp.asarray(tokens[:, order]), Rows(jnp.asarray(valid[:, order]), 0))
    theirs = np.asarray(masks(jnp.asarray(tokens), Rows(jnp.asarray(valid), 0)))[:, order]
    np.testing.assert_allclose(ours[valid[:, order]], theirs[valid[:, order]], atol=1e-5)


def test_bfloat16_is_close():
    tokens = jnp.asarray(normal(2, SLOTS, WIDTH_IN))
    half = {name: jnp.asarray(value, jnp.bfloat16) for name, value in PARAMS.items()}
    ours = masks(tokens.astype(jnp.bfloat16), ALL, half)
    assert ours.dtype == jnp.bfloat16
    gap = abs(np.asarray(ours, np.float32) - np.asarray(masks(tokens, ALL)))
    assert np.median(gap) < 0.03


def test_a_row_of_zeros_has_no_direction_and_finite_gradients():
    unit, pull = jax.vjp(mask_transformer._unit, jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    assert np.isfinite(pull(jnp.ones((2, 2)))[0]).all()


# --- gradients


def test_gradients_are_those_of_the_plain_form():
    """With dead slots and a class token; all parameters and tokens."""
    tokens, valid, alive = rows_of((6, 1), 1)
    weight = normal(2, SLOTS, SPEC.classes, seed=3)
    patches = valid & (np.arange(SLOTS) > 0)

    @jax.jit
    @jax.grad
    def ours(arrays):
        mask = head_of(arrays["params"])((arrays["tokens"],), Rows(jnp.asarray(valid), 1)).mask
        return (jnp.where(patches[..., None], mask, 0.0) * weight).sum()

    @jax.jit
    @jax.grad
    def plain(arrays):
        masks = [
            reference(arrays["state"], x[1:], jnp, jax.lax.erf) * w[v]
            for x, w, v in zip(arrays["alive"], weight, patches, strict=True)
        ]
        return sum(mask.sum() for mask in masks)

    got = ours({"params": PARAMS, "tokens": jnp.asarray(tokens)})
    expected = plain({"state": STATE, "alive": alive})
    assert (np.asarray(got["tokens"])[~patches] == 0).all()
    np.testing.assert_allclose(
        got["tokens"][patches], np.concatenate([x[1:] for x in expected["alive"]]), atol=2e-4
    )
    as_ours = convert(expected["state"], RULES, SHAPES, "test")  # the rules only move numbers
    for name, gradient in got["params"].items():
        np.testing.assert_allclose(gradient, as_ours[name], atol=5e-4, err_msg=name)


# --- dropout


def test_dropout_acts_with_a_key_only():
    tokens, valid, _ = rows_of((7, 1, 4), 1)

    @jax.jit
    def mask(key):
        return head_of()((jnp.asarray(tokens),), Rows(jnp.asarray(valid), 1), key=key).mask

    first, again, other = (mask(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all() and (first != other).any() and (first != mask(None)).any()


def test_training_without_drops_is_inference(monkeypatch):
    monkeypatch.setattr(mask_transformer, "DROPOUT", 0.0)
    tokens, valid, _ = rows_of((7, 1, 4), 1)
    layout = Rows(jnp.asarray(valid), 1)
    run = jax.jit(lambda x, layout, key: head_of()((x,), layout, key=key).mask)
    trained = run(jnp.asarray(tokens), layout, jax.random.key(0))
    alive = valid & (np.arange(SLOTS) > 0)
    np.testing.assert_allclose(trained[alive], masks(jnp.asarray(tokens), layout)[alive], atol=1e-5)


def test_what_is_dropped(monkeypatch):
    """Attention weights, branches and hidden values, at a rate of 0.1, each with its own key."""
    seen = []

    def watch(x, rate, key):
        seen.append((x.shape, rate, jax.random.key_data(key)))
        return x

    @jax.jit
    def keys(tokens):
        head_of()((tokens,), ALL, key=jax.random.key(0))
        return jnp.stack([key for *_, key in seen])

    monkeypatch.setattr(mask_transformer, "dropout", watch)
    different = np.unique(keys(jnp.asarray(normal(2, 7, WIDTH_IN))), axis=0)
    joint = 7 + SPEC.classes
    branch = (2, joint, SPEC.width)
    layer = [(2, SPEC.heads, joint, joint), branch, (2, joint, 4 * SPEC.width), branch]
    assert [shape for shape, *_ in seen] == layer * SPEC.layers
    assert {rate for _, rate, _ in seen} == {0.1}
    assert len(different) == len(seen)


@pytest.mark.parametrize("valid", [None, np.arange(6) % 3 > 0])
def test_attention_drops_its_weights(valid):
    q, k, v = (jnp.asarray(normal(2, 6, 3, 4, seed=seed)) for seed in range(3))
    layout = Rows(None if valid is None else jnp.asarray(np.stack([valid, ~valid])), 0)
    seen = []

    def half(weights):
        seen.append(weights)
        return weights / 2

    ours = attend(q, k, v, layout, half)
    np.testing.assert_allclose(2 * ours, attend(q, k, v, layout), atol=2e-6)
    (weights,) = seen
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    if valid is not None:
        assert (np.asarray(weights)[0][..., ~valid] == 0).all()


# --- scores, losses, costs


def test_scores_and_loss():
    spec = MaskSpec(classes=5, width=8, heads=2, weight=0.4)
    head, logits = (
        MaskTransformerHead(WIDTH_IN, spec),
        Logits(jnp.asarray(normal(2, 3, 4, 5)), None),
    )
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 24, 32)).astype(np.uint8))
    scores = head.token_scores(logits, ALL)
    np.testing.assert_allclose(scores.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(scores.argmax(-1), logits.mask.argmax(-1))
    np.testing.assert_allclose(jax.nn.softmax(head.as_mask(scores)), scores, atol=1e-6)
    assert np.isfinite(head.as_mask(jnp.zeros(3))).all()
    np.testing.assert_array_equal(head.grid_scores(logits, (24, 32)), logits.mask)
    full = resize_bilinear(logits.mask, (24, 32))
    np.testing.assert_allclose(pixel_scores(head, logits, (24, 32)), full)
    (term,) = head.losses(logits, labels).values()
    log_p = np.asarray(jax.nn.log_softmax(full))
    nll = -np.take_along_axis(log_p, np.asarray(labels, np.int64)[..., None], -1)
    np.testing.assert_allclose(term.value(), 0.4 * nll.mean(), rtol=1e-5)


def test_macs_by_hand_and_by_xla(monkeypatch):
    tokens, joint, width = 7, 12, 8
    macs = mask_transformer_macs(tokens, WIDTH_IN, width, SPEC.classes, SPEC.layers)
    layer = 12 * joint * width**2 + 2 * joint**2 * width + 10 * joint * width
    by_hand = tokens * WIDTH_IN * width + 2 * layer + 5 * joint * width
    assert macs.total == by_hand + joint * width**2 + tokens * SPEC.classes * (width + 5)
    assert min(macs.parts.values()) > 0

    def unrolled(q, k, v, layout):  # XLA counts the body of a loop only once
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    monkeypatch.setattr("jaxseg.models.vit.attend", unrolled)
    module = MaskTransformerHead(192, MaskSpec(150, 192, 3))
    shapes = {n: jax.ShapeDtypeStruct(s, "float32") for n, s in module_shapes(module, "").items()}
    image = jax.ShapeDtypeStruct((1, 1024, 192), jnp.float32)
    program = jax.jit(lambda params, x: bind(module, params)((x,), ALL).mask)
    theirs = program.lower(shapes, image).cost_analysis()["flops"] / 2
    macs = mask_transformer_macs(1024, 192, 192, 150, 2)
    assert macs.total == pytest.approx(theirs, rel=0.03)


def test_parameter_count_is_that_of_the_released_head():
    """ViT-S, ADE20K: 12 C^2 + 13 C per block and what is around them."""
    shapes = module_shapes(MaskTransformerHead(384, MaskSpec(150, 384, 6)), "")
    block, c, k = 12 * 384**2 + 13 * 384, 384, 150
    total = 2 * block + (c * c + c) + k * c + 2 * c * c + 2 * c + 2 * k
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total


# --- reference numbers


@pytest.mark.skipif(not SHARED.exists(), reason="the whole reference files are not here")
def test_mmsegmentations_numbers():
    data = load(SHARED / "F4_heads.npz")
    check = Check(data, tolerances(SHARED / "F4_heads.npz"), print)
    mmseg_mask(data, check)
    assert not check.failed and len(check.done) == 3


@pytest.mark.skipif(not SHARED.exists(), reason="the whole reference files are not here")
@pytest.mark.parametrize("name", ["square/share", "square/noshare", "wide/share"])
def test_numbers_of_cts(name):
    data = load(SHARED / "F7_cts_sharing.npz")
    check = Check(data, tolerances(SHARED / "F7_cts_sharing.npz"), print)
    cts_decoders(data, check, name, data[f"out/{name}/encoder_out"])
    assert not check.failed and len(check.done) == 2 - name.startswith("wide")


# --- weights


def mmseg_state():
    """The same weights under mmsegmentation's names."""
    renames = [
        ("proj_dec", "dec_proj"),
        ("blocks.", "layers."),
        (".norm", ".ln"),
        (".attn.qkv.", ".attn.attn.in_proj_"),
        (".attn.proj.", ".attn.attn.out_proj."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    ]
    out = {}
    for name, value in STATE.items():
        for old, new in renames:
            name = name.replace(old, new)
        out[name] = value
    # These two multiply from the right in Segmenter and are Linear layers here.
    out["patch_proj.weight"] = out.pop("proj_patch").T
    out["classes_proj.weight"] = out.pop("proj_classes").T
    return out | {"conv_seg.weight": normal(5, 8, 1, 1), "conv_seg.bias": normal(5)}


def test_mmsegmentations_names_give_the_same_parameters():
    ours = convert(mmseg_state(), segmenter.mmseg_mask_rules("", ""), SHAPES, "test")
    assert ours.keys() == PARAMS.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, PARAMS[name], err_msg=name)


def test_rules_work_below_a_prefix():
    below = {"decoder." + name: value for name, value in STATE.items()}
    shapes = {"heads.0." + name: shape for name, shape in SHAPES.items()}
    rules = segmenter.mask_transformer_rules(r"decoder\.", "heads.0.")
    ours = convert(below, rules, shapes, "test")
    np.testing.assert_array_equal(ours["heads.0.class_proj"], STATE["proj_classes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_dec.weight": None}, "1 without a source (input_proj.kernel)"),
        ({"extra": np.zeros(2)}, "1 not understood (extra)"),
        ({"cls_emb": normal(2, 5, 8)}, "cls_emb (2, 5, 8)"),
        ({"proj_patch": normal(8, 4)}, "patch_proj (8, 4) instead of (8, 8)"),
    ],
)
def test_a_decoder_that_does_not_fit_is_described(change, message):
    state = {n: v for n, v in (STATE | change).items() if v is not None}
    with pytest.raises(UserError) as error:
        convert(state, RULES, SHAPES, "file")
    assert str(error.value).startswith("file: cannot convert: ") and message in str(error.value)
