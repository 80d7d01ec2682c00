"""Resizing equals PyTorch's, by slow loops, by jax and by stored reference numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.resize import (
    bilinear_matrix,
    bilinear_taps,
    interpolate,
    resize_bilinear,
    resize_position_embedding,
)

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "metrics.npz")
SIZES = [
    ((5, 7), (13, 21)),
    ((12, 9), (5, 4)),
    ((4, 6), (9, 3)),
    ((1, 3), (4, 3)),
    ((6, 1), (1, 5)),
]


def slow_bilinear(x, size):
    """One output pixel at a time, float64: the textbook rule with clamped edges."""

    def taps(i, n_in, n_out):
        centre = (i + 0.5) * n_in / n_out - 0.5
        low = int(np.floor(centre))
        near = [min(max(low + d, 0), n_in - 1) for d in (0, 1)]
        return [(near[0], low + 1 - centre), (near[1], centre - low)]

    out = np.zeros((*size, x.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            for y, a in taps(i, x.shape[0], size[0]):
                for z, b in taps(j, x.shape[1], size[1]):
                    out[i, j] += a * b * x[y, z]
    return out


def example(size, seed=0):
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)


@pytest.mark.parametrize("old, new", SIZES)
def test_bilinear_equals_loop_and_jax(old, new):
    x = example(old)
    expected = slow_bilinear(x.astype(np.float64), new)
    np.testing.assert_allclose(resize_bilinear(x, new), expected, rtol=0, atol=2e-6)
    theirs = jax.image.resize(x, (*new, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(resize_bilinear(x, new), theirs, rtol=0, atol=2e-6)
    taps = [bilinear_taps(*axis) for axis in zip(old, new, strict=True)]
    np.testing.assert_allclose(interpolate(x, *taps), expected, rtol=0, atol=2e-6)


def test_leading_axes_dtype_jit_and_gradient():
    x = jnp.asarray(np.stack([example((4, 5), s) for s in range(6)]).reshape(2, 3, 4, 5, 3))
    out = jax.jit(resize_bilinear, static_argnums=1)(x, (8, 7))
    assert out.shape == (2, 3, 8, 7, 3)
    np.testing.assert_allclose(out[1, 2], resize_bilinear(x[1, 2], (8, 7)), rtol=0, atol=1e-6)
    assert resize_bilinear(x.astype(jnp.bfloat16), (8, 7)).dtype == jnp.bfloat16
    # Every output pixel is a weighted mean, so the gradient of the sum counts output pixels.
    gradient = jax.grad(lambda v: resize_bilinear(v, (8, 7)).sum())(x)
    assert float(gradient.sum()) == pytest.approx(out.size, rel=1e-5)


def test_same_size_is_the_same_array():
    x = jnp.asarray(example((4, 5)))
    assert resize_bilinear(x, (4, 5)) is x
    positions = jnp.asarray(example((4, 5)))
    assert resize_position_embedding(positions, (4, 5)) is positions


def test_matrix_rows_are_weights_and_the_cache_is_safe():
    matrix = bilinear_matrix(5, 12)
    assert matrix.shape == (12, 5) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError):
        matrix[0, 0] = 2


def test_taps_may_be_traced():
    """One compiled program serves all sizes."""
    x, traces = example((6, 6)), []

    @jax.jit
    def run(x, rows, columns):
        traces.append(1)
        return interpolate(x, rows, columns)

    for inner in (3, 6):
        out = run(x, bilinear_taps(inner, 8), bilinear_taps(inner, 8))
        expected = slow_bilinear(x[:inner, :inner].astype(np.float64), (8, 8))
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("key", [k for k in GOLDEN.files if "pos/mmseg_bicubic/" in k])
def test_position_embedding_equals_torch_bicubic(key):
    case = key.rsplit("/", 1)[1]
    old, new = (
        tuple(int(n) for n in (part.split("x") if "x" in part else [part] * 2))
        for part in case.split("_to_")
    )
    stored = "in/pos_embed_square" if old == (7, 7) else "in/pos_embed"
    positions = GOLDEN[stored][0, 1:].astype(np.float32).reshape(*old, -1)
    out = resize_position_embedding(positions, new)
    expected = GOLDEN[key][0, 1:].reshape(*new, -1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
