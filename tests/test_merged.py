"""Tokens that several patches share: what they are, and that all executors agree on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    ATM,
    CLASS_TOKEN,
    CONV,
    GRID,
    PATCH,
    VIT,
    few_programs,
    images,
    numbers,
    same,
)

from jaxseg.execute import Masked, Packing
from jaxseg.methods.dcts import Merge
from jaxseg.methods.dtop import Exit
from jaxseg.models.merged import MergeSpec, image_pyramid
from jaxseg.models.network import network
from jaxseg.models.policy import OracleSpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec

SIDES = (2, 4)
ORACLE = MergeSpec(OracleSpec(SIDES), Merge(tuple((side, 0.5) for side in SIDES)))


def spec_of(*exits, vit=VIT, sizes=(ATM, ATM, ATM), **others) -> SegmenterSpec:
    heads = zip((0, 1, 3), sizes, (*exits, None), strict=True)
    heads = tuple(HeadSpec((tap,), *rest) for tap, *rest in heads)
    return SegmenterSpec(vit, heads, merge=ORACLE, **others)


CASES = {
    "cts": spec_of(None, None),
    "step": spec_of(Exit(0.7, k=2), Exit(0.75, k=1)),
    "average": spec_of(Exit(0.7, "average"), Exit(0.75, "average_top_k", k=1)),
    "setr": spec_of(Exit(0.5, k=1), None, vit=CLASS_TOKEN, sizes=(CONV,) * 3),
    "mixed": spec_of(Exit(0.6, k=1), Exit(0.9, k=1), sizes=(CONV, CONV, ATM)),
    "one head": SegmenterSpec(VIT, (HeadSpec((3,), ATM),), merge=ORACLE),
    "cascade": SegmenterSpec(VIT, (HeadSpec((1, 2, 3), ATM),), merge=ORACLE),
}


def windows(*rates: float) -> dict:
    """Logits of the oracle: images that merge different shares of their windows."""
    rng = np.random.default_rng(6)
    lots = (rng.random((len(rates), GRID[0] // s, GRID[1] // s)) for s in SIDES)
    rates = np.array(rates)[:, None, None]
    return {
        f"policy.windows.{i}": np.where(lot < rates, 9.0, -9.0).astype(np.float32)
        for i, lot in enumerate(lots)
    }


@pytest.mark.parametrize("name", CASES)
def test_executors_agree_and_an_image_is_alone_in_its_batch(name):
    spec = CASES[name]
    net, batch = network(spec), images(3)
    merged = windows(0.0, 0.4, 1.0)
    arrays = numbers(spec)
    chain = net.program() if name == "step" else few_programs(net)
    reference = net.program(Masked())(arrays | merged, batch)
    alive = np.asarray(reference.alive)
    # 35 patches: nobody merges; some; a 4x4 and three 2x2 windows are all that fit beside it.
    assert alive[0, 0] > alive[1, 0] > alive[2, 0]
    left = np.asarray(reference.left)
    assert all((left == number).any() for number in (-1, *range(len(spec.exits))))
    same(chain(arrays | merged, batch), reference)
    alone = chain(arrays | {n: value[1:2] for n, value in merged.items()}, batch[1:2])
    np.testing.assert_array_equal(alone.left[0], reference.left[1])
    np.testing.assert_allclose(alone.scores[0], reference.scores[1], atol=2e-5)
    if name in ("cts", "step"):
        same(net.program(Packing(steps=4, windows=2))(arrays | merged, batch), reference)


@pytest.mark.parametrize("name", ["setr", "cascade"])
def test_merging_nothing_is_the_dense_model(name):
    spec = dataclasses.replace(
        CASES[name],
        heads=tuple(dataclasses.replace(h, decide=None) for h in CASES[name].heads),
    )
    arrays = numbers(spec)
    dense = network(spec.dense()).program()(arrays, images(2))
    merged = network(spec).program(Masked())(arrays | windows(0.0, 0.0), images(2))
    np.testing.assert_allclose(merged.scores, dense.scores, atol=2e-5)
    packed = few_programs(network(spec))(arrays | windows(0.0, 0.0), images(2))
    np.testing.assert_allclose(packed.scores, dense.scores, atol=2e-5)
    assert (np.asarray(packed.window) == 1).all()


def test_a_window_of_one_colour_is_the_token_of_its_colour():
    """Sharing changes only the position where all patches of a window look the same."""
    spec = CASES["one head"]
    vit = network(spec).bind(numbers(spec) | windows(1.0), {}).vit
    flat = np.ones((1, GRID[0] * PATCH, GRID[1] * PATCH, 3), np.float32) * [0.1, -0.4, 0.7]
    rows = np.asarray(image_pyramid(vit, jnp.asarray(flat, jnp.float32), SIDES))
    assert rows.shape == (1, 35 + 6 + 1, PATCH * PATCH * 3)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-6)


def test_window_pixels_are_means_of_neighbouring_pixels():
    spec = CASES["one head"]
    vit = network(spec).bind(numbers(spec) | windows(1.0), {}).vit
    rows = np.asarray(image_pyramid(vit, jnp.asarray(images(1)), SIDES))[0]
    for start, side, row, column in ((35 + 4, 2, 1, 1), (35 + 6, 4, 0, 0)):
        top, left = row * side * PATCH, column * side * PATCH
        window = images(1)[0, top : top + side * PATCH, left : left + side * PATCH]
        expected = window.reshape(PATCH, side, PATCH, side, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(rows[start].reshape(PATCH, PATCH, 3), expected, atol=1e-6)


def test_gradients_reach_the_shared_patches_and_not_the_policy():
    spec = CASES["step"]
    arrays = numbers(spec) | windows(0.4, 1.0)
    labels = np.random.default_rng(0).integers(0, 5, (2, 20, 28)).astype(np.uint8)

    def loss(arrays):
        model = network(spec).bind(arrays, {})
        return sum(t.value() for t in model.losses(jnp.asarray(images(2)), labels).values())

    grads = jax.jit(jax.grad(loss))(arrays)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert np.abs(grads["vit.patch_embed.kernel"]).max() > 0
    assert not any(np.abs(g).max() for n, g in grads.items() if n.startswith("policy"))
