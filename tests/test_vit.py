"""The backbone: sizes, taps, class token, parameter counts. `test_golden` has the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_parts import ALL, bind, module_shapes, run

from jaxseg.models.vit import VARIANTS, ViT, ViTSpec
from jaxseg.resize import resize_position_embedding

SMALL = ViTSpec(width=16, depth=3, heads=2, grid=(4, 5), patch=8)
RNG = np.random.default_rng(0)


def filled(spec):
    module = ViT(spec)
    shapes = module_shapes(module, "")
    return bind(module, {n: RNG.normal(0, 0.2, s).astype(np.float32) for n, s in shapes.items()})


def picture(height, width, batch=1):
    return jnp.asarray(RNG.standard_normal((batch, height, width, 3), np.float32))


# --- parameter counts

# Published sizes without the classifier: timm's vit_*_patch16_224, 14 x 14 positions, class token
# and final norm. Here the token and its position are one vector: D fewer.
TIMM = {"Ti": 5_524_416, "S": 21_665_664, "B": 85_798_656, "L": 303_301_632}


def parameters(spec):
    return sum(int(np.prod(shape)) for shape in module_shapes(ViT(spec), "").values())


@pytest.mark.parametrize("name", TIMM)
def test_parameter_counts_are_those_of_timm(name):
    width, depth, heads = VARIANTS[name]
    spec = ViTSpec(width, depth, heads, grid=(14, 14), class_token=True, final_norm=True)
    assert parameters(spec) == TIMM[name] - width


def test_the_table_covers_all_variants():
    assert set(VARIANTS) == {*TIMM, "smoke"}


@pytest.mark.parametrize(("name", "crop", "published"), [("B", 512, 86.43), ("L", 640, 304.74)])
def test_parameter_counts_are_those_of_dtop(name, crop, published):
    """DToP's count holds an unused class token and its position, 2 D more than ours."""
    width, depth, heads = VARIANTS[name]
    ours = parameters(ViTSpec(width, depth, heads, grid=(crop // 16, crop // 16)))
    assert round((ours + 2 * width) / 1e6, 2) == published


# --- sizes


@pytest.mark.parametrize("size", [(32, 40), (40, 24), (64, 64), (8, 8)])
def test_any_size_gives_a_token_per_patch(size):
    out = run(filled(SMALL), picture(*size, batch=2), (2,))[2]
    assert out.shape == (2, size[0] // 8 * (size[1] // 8), 16)
    assert np.isfinite(out).all()


def test_tokens_are_patches_in_raster_order():
    """Changing one patch changes one token before the first block."""
    vit, image = filled(SMALL), picture(32, 40)
    changed = image.at[:, 8:16, 24:32].add(1.0)  # row 1, column 3
    differ = (vit.embed(image) != vit.embed(changed)).any(-1)[0]
    np.testing.assert_array_equal(np.flatnonzero(differ), [1 * 5 + 3])


def test_patch_kernel_rows_are_row_column_channel():
    vit, image = filled(SMALL), picture(32, 40)
    patch = np.asarray(image[0, 8:16, 24:32])
    kernel = np.asarray(vit.patch_embed.kernel[...]).reshape(8, 8, 3, 16)
    expected = np.einsum("ijc,ijcd->d", patch, kernel) + vit.patch_embed.bias[...]
    np.testing.assert_allclose(
        vit.embed(image)[0, 8], expected + vit.pos_embed[1, 3], rtol=1e-4, atol=1e-4
    )


def test_partial_patches_are_padded_with_zeros_at_the_bottom_and_right():
    vit, image = filled(SMALL), picture(27, 33)
    assert vit.grid(27, 33) == (4, 5)
    padded = jnp.pad(image, ((0, 0), (0, 5), (0, 7), (0, 0)))
    np.testing.assert_array_equal(vit.embed(image), vit.embed(padded))


def test_positions_are_resized_to_the_grid_of_the_image():
    vit = filled(SMALL)
    grey = jnp.zeros((1, 48, 24, 3))
    expected = resize_position_embedding(vit.pos_embed[...], (6, 3)).reshape(18, 16)
    np.testing.assert_allclose(vit.embed(grey)[0], expected + vit.patch_embed.bias[...], atol=1e-6)


# --- taps, class token, final norm


def test_taps_are_the_outputs_of_their_blocks():
    vit, image = filled(SMALL), picture(32, 40)
    out = run(vit, image, (0, 2))
    assert set(out) == {0, 2}
    first = vit.blocks[0](vit.embed(image), ALL)
    np.testing.assert_allclose(out[0], first, atol=1e-5)
    last = vit.blocks[2](vit.blocks[1](first, ALL), ALL)
    np.testing.assert_allclose(out[2], last, atol=1e-4)


def test_class_token_comes_first_and_takes_part():
    spec = dataclasses.replace(SMALL, class_token=True)
    vit, image = filled(spec), picture(32, 40)
    embedded = vit.embed(image)
    assert embedded.shape == (1, 21, 16)
    np.testing.assert_array_equal(embedded[0, 0], vit.class_token[...])
    with_token = run(vit, image, (2,))[2]
    assert with_token.shape == (1, 21, 16)
    plain = ViT(SMALL)
    plain = bind(plain, {name: _at(vit, name) for name in module_shapes(plain, "")})
    dropped = run(plain, image, (2,))[2]
    np.testing.assert_array_equal(plain.embed(image), embedded[:, 1:])
    assert dropped.shape == (1, 20, 16)
    assert (abs(with_token[:, 1:] - dropped) > 1e-4).any()  # the others attend to it


def _at(module, name):
    for part in name.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module[...]


def test_final_norm_is_on_the_last_block_only():
    vit, image = filled(dataclasses.replace(SMALL, final_norm=True)), picture(32, 40)
    out = run(vit, image, (1, 2))
    np.testing.assert_allclose(out[2], vit.norm(vit.blocks[2](out[1], ALL)), atol=1e-4)


def test_drop_path_grows_linearly_and_needs_a_key():
    spec = dataclasses.replace(SMALL, drop_path=0.4)
    vit, image = filled(spec), picture(32, 40, batch=8)
    assert [block.drop_path_rate for block in vit.blocks] == [0.0, 0.2, 0.4]
    still = run(vit, image, (0, 2))
    np.testing.assert_array_equal(still[2], run(vit, image, (0, 2))[2])
    keys = list(jax.random.split(jax.random.key(0), 3))
    first = vit.run(vit.embed(image), ALL, range(1), keys=keys)
    np.testing.assert_allclose(first, still[0], atol=1e-5)  # rate 0 in the first block
    last = vit.run(first, ALL, range(1, 3), keys=keys)
    changed = (abs(last - still[2]) > 1e-3).any((-2, -1))
    assert changed.any()


def test_images_do_not_see_each_other():
    vit, images = filled(SMALL), picture(32, 40, batch=2)
    both = run(vit, images, (2,))[2]
    np.testing.assert_allclose(both[1:], run(vit, images[1:], (2,))[2], atol=1e-5)
