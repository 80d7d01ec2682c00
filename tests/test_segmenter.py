"""A ViT with heads, and the bridge to flat dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import network, shapes, stats_of
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import VARIANTS, ViTSpec
from jaxseg.tokens import Rows

VIT = ViTSpec(16, 3, 2, grid=(3, 4), patch=8, class_token=True)
ATM = AtmSpec(classes=5, width=8, heads=2, layers=1)
CONV = ConvSpec(classes=5, channels=8, weight=0.4)
HEADS = (HeadSpec((0,), CONV), HeadSpec((1,), ATM), HeadSpec((2,), ATM))
SPEC = SegmenterSpec(VIT, HEADS)
RNG = np.random.default_rng(0)
ALL = Rows(None, prefix=0)


def images(height, width, batch=2):
    return jnp.asarray(RNG.standard_normal((batch, height, width, 3), np.float32))


LABELS = jnp.asarray(RNG.integers(0, 5, (2, 24, 32)).astype(np.uint8))


def started(spec):
    """Network, parameters, statistics; far enough from 0 that everything matters."""
    params, stats = draw(*shapes(spec), seed=0)
    noise = {n: 0.1 * RNG.standard_normal(v.shape, np.float32) for n, v in params.items()}
    return network(spec), {n: v + noise[n] for n, v in params.items()}, stats


# --- heads


def test_inference_without_exits_runs_the_last_head_alone():
    net, params, stats = started(SPEC)
    picture = images(24, 32)
    everything = jax.jit(lambda p: net.bind(p, stats)(picture))(params)
    assert len(everything) == 3
    answer = net.program()(params | stats, picture)
    expected = net.bind(params, stats).heads[-1].grid_scores(everything[-1], (24, 32))
    np.testing.assert_allclose(answer.scores, expected, atol=1e-6)
    assert answer.alive.tolist() == [[13], [13]] and (answer.left == -1).all()
    broken = {n: v * np.nan if n.startswith("heads.0") else v for n, v in params.items()}
    np.testing.assert_array_equal(net.program()(broken | stats, picture).scores, answer.scores)


def test_each_head_reads_its_own_tap():
    """Changing the last block leaves the auxiliary heads as they were."""
    net, params, stats = started(SPEC)
    run = jax.jit(lambda params: net.bind(params, stats)(images(24, 32)))
    moved = dict(params)
    moved["vit.blocks.2.mlp.fc2.bias"] = params["vit.blocks.2.mlp.fc2.bias"] + 1.0
    before, after = run(params), run(moved)
    np.testing.assert_array_equal(before[0].mask, after[0].mask)
    np.testing.assert_array_equal(before[1].mask, after[1].mask)
    assert (before[2].mask != after[2].mask).any()


def atm_terms(stage, suffix=""):
    return {f"{stage}.loss_{kind}{suffix}" for kind in ("ce", "mask", "dice")}


def test_heads_see_the_tokens_of_patches_only():
    net, params, stats = started(SegmenterSpec(VIT, HEADS[2:]))
    picture = images(24, 32)

    @jax.jit
    def both(params):
        model = net.bind(params, stats)
        tokens = model.vit(picture, (2,))[2]
        return model(picture)[0].mask, model.heads[0]((tokens[:, 1:],), ALL).mask

    ours, expected = both(params)
    expected = expected.reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        (HEADS, {"aux_0.loss_ce"} | atm_terms("aux_1") | atm_terms("decode")),
        (HEADS[:1], {"decode.loss_ce"}),
        ((HeadSpec((0, 2), ATM),), atm_terms("decode") | atm_terms("decode", "_0")),
    ],
)
def test_names_of_the_loss_terms(heads, names):
    spec = SegmenterSpec(VIT, heads)
    net = network(spec)
    params, stats = shapes(spec)

    def losses(params, stats, images, labels):
        return net.bind(params, stats).losses(images, labels)

    batch = jax.ShapeDtypeStruct((2, 24, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 24, 32), jnp.uint8)
    terms = jax.eval_shape(losses, params, stats, batch, labels)
    assert set(terms) == names
    assert all(term.total.shape == () for term in terms.values())


def test_a_training_pass_moves_the_statistics_and_every_parameter_has_a_gradient():
    net, params, stats = started(SPEC)

    @jax.jit
    def step(params, stats, key):
        def total(params):
            model = net.bind(params, stats)
            terms = model.losses(images(24, 32), LABELS, key=key)
            return sum(term.value() for term in terms.values()), stats_of(model)

        return jax.grad(total, has_aux=True)(params)

    grads, moved = step(params, stats, jax.random.key(0))
    assert set(moved) == set(stats) == {"heads.0.bns.0.mean", "heads.0.bns.0.var"}
    assert all((moved[name] != stats[name]).all() for name in stats)
    silent = {name for name, grad in grads.items() if not (grad != 0).any()}
    # A bias on all keys alike shifts whole rows of scores: the softmax takes it away. The mask
    # logits do see the keys of the cross-attention.
    assert silent <= {name for name in params if name.endswith("self_attn.k.bias")}


# --- flat dicts


def test_split_and_bind_give_back_what_they_got():
    net, params, stats = started(SPEC)
    again = net.split(params | stats)
    assert again[0].keys() == params.keys() and again[1].keys() == stats.keys()
    model = net.bind(*again)
    for name, value in stats_of(model).items():
        np.testing.assert_array_equal(value, stats[name])
    nested = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    flat = {".".join(map(str, path)): value for path, value in nested.items()}
    assert flat.keys() == params.keys()
    assert all(flat[name] is params[name] for name in params)


def test_more_than_ten_blocks_keep_their_order():
    spec = SegmenterSpec(ViTSpec(8, 12, 2, grid=(2, 2), patch=8), (HeadSpec((11,), ATM),))
    params, stats = draw(*shapes(spec), seed=0)
    model = network(spec).bind(params, stats)
    for i in (1, 2, 10, 11):
        name = f"vit.blocks.{i}.attn.qkv.kernel"
        np.testing.assert_array_equal(model.vit.blocks[i].attn.qkv.kernel[...], params[name])


def test_a_large_network_is_built_from_shapes_alone():
    """ViT-L at 640 with three heads: no array of its 345 million numbers is made."""
    width, depth, heads = VARIANTS["L"]
    atm = AtmSpec(classes=150, width=width // 2, heads=8)
    taps = [HeadSpec((tap,), atm) for tap in (7, 15, 23)]
    spec = SegmenterSpec(ViTSpec(width, depth, heads, grid=(40, 40)), tuple(taps))
    params, stats = shapes(spec)
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in params.values()) and not stats
    vit = sum(v.size for n, v in params.items() if n.startswith("vit."))
    total = sum(v.size for v in params.values())
    assert vit == 304_735_232 and round((total - vit) / 3e6, 3) == 13.216
    network(spec)


# --- scores


def test_bfloat16_is_close_to_float32():
    net, params, stats = started(SPEC)
    picture = images(24, 32)
    programs = [net.program(bfloat16=flag) for flag in (False, True)]
    exact, half = (p(p.prepare(params | stats), picture).scores for p in programs)
    assert exact.shape == half.shape == (2, 3, 4, 5)
    assert exact.dtype == half.dtype == jnp.float32
    assert 0 < abs(exact - half).max() < 0.05


def test_a_padded_image_gives_the_scores_of_its_padding():
    net, params, stats = started(SPEC)
    picture = images(20, 27)
    whole = jnp.pad(picture, ((0, 0), (0, 4), (0, 5), (0, 0)))
    ours, padded = (net.program()(params | stats, x).scores for x in (picture, whole))
    np.testing.assert_allclose(ours, padded, atol=1e-6)


def test_taps_must_rise_from_head_to_head():
    with pytest.raises(ValueError, match="must rise"):
        SegmenterSpec(VIT, (HEADS[1], HEADS[0]))
