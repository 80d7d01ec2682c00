"""Heads: sizes, formulas, wiring. `test_golden` has the numbers of the released ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import ALL, bind, module_shapes, run_head

from jaxseg.models.atm import AtmDecoder, AtmSpec, for_batch
from jaxseg.models.heads import AtmHead, CascadeHead, ConvHead, ConvSpec, Logits, pixel_scores
from jaxseg.resize import resize_bilinear

RNG = np.random.default_rng(0)
ATM = AtmSpec(classes=5, width=8, heads=2, layers=2)
GRID = (3, 4)


def filled(module):
    shapes = module_shapes(module, "")
    flat = {n: RNG.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    return bind(module, {n: abs(v) + 0.1 if n.endswith(".var") else v for n, v in flat.items()})


def tokens(levels=1, batch=2):
    shape = (batch, GRID[0] * GRID[1], 6)
    return [jnp.asarray(RNG.standard_normal(shape, np.float32)) for _ in range(levels)]


LABELS = jnp.asarray(RNG.integers(0, 5, (2, 24, 32)).astype(np.uint8))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def softmax(x):
    x = np.exp(np.asarray(x))
    return x / x.sum(-1, keepdims=True)


# --- sizes


@pytest.mark.parametrize(
    ("width", "classes", "heads", "millions"),
    [(768, 150, 6, 7.454), (1024, 150, 8, 13.216), (1024, 171, 16, 13.226), (1024, 59, 16, 13.169)],
)
def test_atm_parameter_counts_are_those_of_dtop(width, classes, heads, millions):
    module = AtmHead(width, AtmSpec(classes, width // 2, heads))
    total = sum(int(np.prod(shape)) for shape in module_shapes(module, "").values())
    assert round(total / 1e6, 3) == millions


# --- DToP's head


def test_mask_logits_are_one_product_of_the_last_layers_queries_and_keys():
    """Computed at once over the width, they are the mean over heads of the scaled scores."""
    decoder, (memory_in,) = filled(AtmDecoder(6, AtmSpec(5, 8, 2, layers=1))), tokens()
    queries = jnp.asarray(RNG.standard_normal((2, 5, 8), np.float32))
    _, mask = decoder(queries, memory_in, ALL, key=None)
    layer = decoder.layers[0]
    attended = layer.self_attn(queries, queries, ALL, key=None)
    q = layer.cross_attn.q(layer.norm1(queries + attended)).reshape(2, 5, 2, 4)
    k = layer.cross_attn.k(decoder.input_norm(decoder.input_proj(memory_in))).reshape(2, 12, 2, 4)
    by_head = np.einsum("bkhd,bnhd->bnkh", q, k) / 4**0.5
    np.testing.assert_allclose(mask, by_head.mean(-1), atol=1e-5)


def test_token_scores_are_presence_times_mask():
    head, taps = filled(AtmHead(6, ATM)), tokens()
    logits = run_head(head, taps, GRID)
    assert logits.mask.shape == (2, *GRID, 5) and logits.classes.shape == (2, 5, 2)
    expected = softmax(logits.classes)[:, None, None, :, 0] * sigmoid(logits.mask)
    np.testing.assert_allclose(head.grid_scores(logits, (24, 32)), expected, atol=1e-6)
    resized = resize_bilinear(jnp.asarray(expected), (24, 32))  # probabilities, not logits
    np.testing.assert_allclose(pixel_scores(head, logits, (24, 32)), resized, atol=1e-6)


def test_masks_lie_on_the_grid_in_raster_order():
    """The mask logit of a cell depends on its own token alone when queries are fixed."""
    decoder, (seen,) = filled(AtmDecoder(6, AtmSpec(5, 8, 2, layers=1))), tokens()
    queries = jnp.zeros((2, 5, 8))
    _, mask = decoder(queries, seen, ALL, key=None)
    _, other = decoder(queries, seen.at[:, 7].add(1.0), ALL, key=None)
    differ = (abs(mask - other) > 1e-6).any((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(differ), [7])


def test_queries_are_the_same_for_every_image_and_follow_the_dtype():
    head = filled(AtmHead(6, ATM))
    batch = for_batch(head.queries, 2, jnp.bfloat16)
    assert batch.shape == (2, 5, 8) and batch.dtype == jnp.bfloat16
    assert (batch[0] == batch[1]).all()


@pytest.mark.parametrize("make", [lambda: AtmHead(6, ATM), lambda: CascadeHead(6, ATM, 2)])
def test_dropout_acts_with_a_key_only(make):
    module = make()
    head, taps = filled(module), tokens(levels=1 if isinstance(module, AtmHead) else 2)

    def mask(key):
        out = head(taps, ALL, key=key)
        return (out if isinstance(module, AtmHead) else out[-1]).mask

    first, again, other = (mask(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != mask(None)).any()


# --- SegViT's cascade


def test_cascade_reads_the_deepest_tap_first_and_adds_up_masks():
    head, taps = filled(CascadeHead(6, ATM, 3)), tokens(levels=3)
    levels = run_head(head, taps, GRID)
    queries, total = for_batch(head.queries, 2, jnp.float32), 0.0
    for i, tap in enumerate((taps[2], taps[1], taps[0])):
        queries, mask = head.decoders[i](queries, tap, ALL, key=None)
        total = total + mask
        np.testing.assert_allclose(levels[i].mask.reshape(2, 12, 5), total, atol=1e-5)
        np.testing.assert_allclose(levels[i].classes, head.class_embed(queries), atol=1e-5)
        assert levels[i].classes.shape == (2, 5, 6)


def test_cascade_pixel_scores_let_every_query_vote():
    head, taps = filled(CascadeHead(6, ATM, 2)), tokens(levels=2)
    levels = run_head(head, taps, GRID)
    mask = sigmoid(resize_bilinear(levels[-1].mask, (6, 8)))  # logits are interpolated first
    votes = softmax(levels[-1].classes)[..., :-1]
    expected = np.einsum("bhwq,bqk->bhwk", mask, votes)
    np.testing.assert_allclose(pixel_scores(head, levels, (6, 8)), expected, atol=1e-5)


def test_cascade_loss_names():
    head = filled(CascadeHead(6, ATM, 3))
    terms = head.losses(run_head(head, tokens(levels=3), GRID), LABELS)
    kinds = ("loss_ce", "loss_mask", "loss_dice")
    assert set(terms) == {kind + suffix for kind in kinds for suffix in ("", "_0", "_1")}


# --- convolutional heads


def test_conv_head_scales_up_after_each_convolution():
    spec = ConvSpec(5, channels=8, convs=2, kernel=3, up_scale=2)
    head = filled(ConvHead(6, spec, None))
    (tap,) = taps = tokens()
    logits = run_head(head, taps, GRID)
    assert logits.mask.shape == (2, 6, 8, 5)
    x = head.norm(tap).reshape(2, *GRID, 6)
    for conv, bn in zip(head.convs, head.bns, strict=True):
        x = jax.nn.relu(bn(conv(x), training=False))
        x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
    expected = head.classify(x)
    np.testing.assert_allclose(head.grid_scores(logits, (24, 32)), expected, atol=1e-4)
    scores = pixel_scores(head, logits, (24, 32))
    np.testing.assert_allclose(scores, resize_bilinear(expected, (24, 32)), atol=1e-4)


def slow_bilinear(x, size):
    """[r, c, F] to ``size``, pixel by pixel: half-pixel centres, the rim repeated."""
    out = np.zeros((*size, x.shape[-1]))
    for at in np.ndindex(*size):
        place = [(i + 0.5) * n / m - 0.5 for i, n, m in zip(at, x.shape, size, strict=False)]
        place = [min(max(p, 0), n - 1) for p, n in zip(place, x.shape, strict=False)]
        (i, di), (j, dj) = ((int(p), p % 1) for p in place)
        below, right = min(i + 1, len(x) - 1), min(j + 1, x.shape[1] - 1)
        top = (1 - dj) * x[i, j] + dj * x[i, right]
        out[at] = (1 - di) * top + di * ((1 - dj) * x[below, j] + dj * x[below, right])
    return out


def slow_convolution(x, kernel):
    """[r, c, C] with [3, 3, C, F], product by product: zeros around, nothing turned round."""
    out = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i, j, a, b in np.ndindex(*x.shape[:2], 3, 3):
        y, z = i + a - 1, j + b - 1
        if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
            out[i, j] += x[y, z] @ kernel[a, b]
    return out


def test_setr_pup_by_hand():
    """In mmsegmentation's order: every convolution is followed by x2, then come the classes."""
    head = filled(ConvHead(6, ConvSpec(5, channels=8, convs=2, kernel=3, up_scale=2), None))
    (tap,) = taps = tokens()
    found = head.grid_scores(run_head(head, taps, GRID), (12, 16))
    x = np.asarray(tap[1], np.float64).reshape(*GRID, 6)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * np.asarray(head.norm.scale[...]) + np.asarray(head.norm.bias[...])
    for conv, bn in zip(head.convs, head.bns, strict=True):
        scale, bias, mean, var = (np.asarray(v[...]) for v in (bn.scale, bn.bias, bn.mean, bn.var))
        x = slow_convolution(x, np.asarray(conv.kernel[...]))
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
        x = slow_bilinear(x, (2 * x.shape[0], 2 * x.shape[1]))
    x = x @ np.asarray(head.classify.kernel[...]) + np.asarray(head.classify.bias[...])
    assert x.shape == (12, 16, 5) and x.std() > 0.5
    np.testing.assert_allclose(found[1], x, atol=1e-4)


@pytest.mark.parametrize("convs", [0, 1, 2])
def test_up_sampling_behind_the_last_convolution_leaves_a_head_per_token(convs):
    head = filled(ConvHead(6, ConvSpec(5, 6, convs=convs, up_scale=4), None))
    assert head.per_token == (convs < 2)
    scores = head.grid_scores(run_head(head, tokens(), GRID), (48, 64))
    assert scores.shape == (2, 3 * 4**convs, 4 * 4**convs, 5)


def test_conv_head_without_norm_has_no_norm():
    shapes = module_shapes(ConvHead(6, ConvSpec(5, channels=8, norm=False), None), "")
    assert not any(name.startswith("norm.") for name in shapes)
    assert shapes["convs.0.kernel"] == (1, 1, 6, 8) and shapes["classify.kernel"] == (8, 5)


def test_conv_head_weight_scales_its_loss():
    logits = Logits(jnp.asarray(RNG.standard_normal((2, *GRID, 5), np.float32)), None)
    full, aux = (
        ConvHead(6, ConvSpec(5, weight=weight), None).losses(logits, LABELS)["loss_ce"].value()
        for weight in (1.0, 0.4)
    )
    np.testing.assert_allclose(aux, 0.4 * full, rtol=1e-6)
    assert full > 1.0


def test_conv_head_uses_batch_statistics_with_a_key_only():
    head, taps = filled(ConvHead(6, ConvSpec(5, channels=8), None)), tokens()
    before = np.array(head.bns[0].mean[...])
    head(taps, ALL)
    np.testing.assert_array_equal(head.bns[0].mean[...], before)
    head(taps, ALL, key=jax.random.key(0))
    assert (head.bns[0].mean[...] != before).all()
