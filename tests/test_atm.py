"""Few class queries go to the tokens, many have the tokens come to them: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import bind, module_shapes

from jaxseg.models import atm, attention
from jaxseg.models.atm import AtmDecoder, AtmSpec, QueryAttention
from jaxseg.tokens import Packed, Rows

RNG = np.random.default_rng(0)
WIDTH, HEADS, FEW, SLOTS = 16, 2, 3, 7
MANY = WIDTH // HEADS  # the first number that is not few


def numbers(*shape):
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


def filled(module):
    shapes = module_shapes(module, "")
    return bind(module, {n: RNG.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()})


def layouts():
    """Two images, of which the second has a class token alone, where it may."""
    valid = np.ones((2, SLOTS), bool)
    valid[0, 4:] = valid[1, 1:] = False
    at, count = jnp.array([0, 4]), jnp.array([4, 1])
    return {
        "whole": (Rows(None, 0), (2, SLOTS)),
        "class token": (Rows(None, 1), (2, SLOTS)),
        "masked": (Rows(jnp.asarray(valid), 1), (2, SLOTS)),
        "packed": (Packed(at, count, 1, (4, 8)), (12,)),
    }


@pytest.fixture
def many(monkeypatch):
    """Calls with the queries taken for many."""

    def call(function, *args, **how):
        with monkeypatch.context() as patch:
            patch.setattr(QueryAttention, "_few", lambda self, queries: False)
            return function(*args, **how)

    return call


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", layouts())
def test_both_ways_give_the_same_queries_and_masks(many, monkeypatch, name, backend):
    layout, slots = layouts()[name]
    decoder = filled(AtmDecoder(6, AtmSpec(FEW, WIDTH, HEADS, layers=2)))
    queries, tokens = numbers(2, FEW, WIDTH), numbers(*slots, 6)
    theirs = many(decoder, queries, tokens, layout, key=None)
    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    ours = decoder(queries, tokens, layout, key=None)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    living = np.asarray(layout.patches(tokens))
    np.testing.assert_allclose(ours[1][living], theirs[1][living], atol=1e-5)


def test_both_ways_drop_the_same_weights_and_have_the_same_gradients(many):
    decoder = filled(AtmDecoder(6, AtmSpec(FEW, WIDTH, HEADS, layers=1)))
    queries, tokens = numbers(2, FEW, WIDTH), numbers(2, SLOTS, 6)

    def loss(queries, tokens):
        updated, mask = decoder(queries, tokens, Rows(None, 0), key=jax.random.key(1))
        return jnp.sin(updated).sum() + jnp.sin(mask).sum()

    grads = jax.grad(loss, argnums=(0, 1))
    for ours, theirs in zip(grads(queries, tokens), many(grads, queries, tokens), strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("count", "few"), [(FEW, True), (MANY - 1, True), (MANY, False)])
def test_few_are_those_whose_heads_are_fewer_than_the_width(monkeypatch, count, few):
    called = []
    whole = atm.attend_memory
    monkeypatch.setattr(atm, "attend_memory", lambda *a: called.append(1) or whole(*a))
    attend = filled(QueryAttention(WIDTH, HEADS))
    attend(numbers(2, count, WIDTH), numbers(2, SLOTS, WIDTH), Rows(None, 0), key=None)
    assert bool(called) is few
