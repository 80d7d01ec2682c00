"""The tiled attention against plain softmax attention: values, gradients, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.attention import _tiled, attend
from jaxseg.tokens import Rows

ALL = Rows(None, prefix=0)


def plain(q, k, v):
    """softmax(q k^T) v with the scores of all pairs at once; the scale is already in q."""
    scores = jnp.einsum("ptd,psd->pts", q, k).astype(jnp.float32)
    return jnp.einsum("pts,psd->ptd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def random_qkv(shape, dtype=jnp.float32, size=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    return [(jax.random.normal(key, shape) * size).astype(dtype) for key in keys]


SHAPES = [(1, 1, 1), (2, 1, 4), (3, 7, 5), (4, 33, 8)]  # pairs, tokens, width


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_in_float32(shape):
    qkv = random_qkv(shape)
    weight = jax.random.normal(jax.random.key(1), shape)
    ours, pull = jax.vjp(lambda q, k, v: _tiled(q, k, v, None), *qkv)
    theirs, pull_plain = jax.vjp(plain, *qkv)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for name, a, b in zip("qkv", pull(weight), pull_plain(weight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_values_and_gradients_in_bfloat16(shape):
    qkv = random_qkv(shape, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in qkv]
    weight = jax.random.normal(jax.random.key(1), shape).astype(jnp.bfloat16)
    ours, pull = jax.vjp(lambda q, k, v: _tiled(q, k, v, None), *qkv)
    theirs, pull_plain = jax.vjp(plain, *exact)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.03)
    gradients = zip(pull(weight), pull_plain(weight.astype(jnp.float32)), strict=True)
    for a, b in gradients:
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.04 * float(abs(b).max() + 1))


def test_huge_scores_do_not_overflow():
    """Scores of thousands: attention is a choice of one token, and its gradients stay finite."""
    q, k, v = random_qkv((2, 9, 4), size=60.0)
    ours, pull = jax.vjp(lambda q, k, v: _tiled(q, k, v, None), q, k, v)
    best = jnp.einsum("ptd,psd->pts", q, k).argmax(-1)
    np.testing.assert_allclose(ours, jnp.take_along_axis(v, best[..., None], axis=1), rtol=1e-4)
    assert all(np.isfinite(grad).all() for grad in pull(jnp.ones_like(ours)))


def test_very_negative_scores_weigh_nothing():
    q = jnp.ones((1, 2, 1))
    k = jnp.array([[[-3e4], [-3e4]]])
    v = jnp.array([[[1.0], [3.0]]])
    np.testing.assert_allclose(_tiled(q, k, v, None), jnp.full((1, 2, 1), 2.0))


def test_attend_scales_and_keeps_heads_and_images_apart():
    q, k, v = random_qkv((2, 6, 3, 5))
    ours = attend(q, k, v, ALL)
    for image in range(2):
        for head in range(3):
            one = [x[image : image + 1, :, head] for x in (q / 5**0.5, k, v)]
            np.testing.assert_allclose(ours[image, :, head], plain(*one)[0], atol=2e-6)


def test_cpu_and_accelerator_forms_agree(monkeypatch):
    qkv = random_qkv((2, 6, 3, 5))
    tiled = attend(*qkv, ALL)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(tiled, attend(*qkv, ALL), atol=2e-6)
