"""The part of `verify_fixture` for F7: shared tokens, their decoders, a policy's targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from fixture_parts import images_of, lowered, make_vit, reduce_zero, to_maps, weights_below
from fixture_segmenter import cts_decoders, linear_decoder, mask_decoder

from jaxseg import merging, purity
from jaxseg.execute import Packing
from jaxseg.methods.cts import Share
from jaxseg.models.heads import Logits, pixel_scores
from jaxseg.models.merged import begin_merged, image_pyramid
from jaxseg.models.vit import ViT, ViTSpec
from jaxseg.tokens import readout

EMBEDDING = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed")


def sharing(data: dict, check) -> None:
    for name, scenario in data["config"]["scenarios"].items():
        policy = jnp.asarray(data[f"in/{name}/policy_logits"].transpose(0, 2, 3, 1))
        score = jax.nn.softmax(policy)[..., 1]
        chosen = Share(scenario["merge"])({2: score}, (0, 0))
        vit = encoder(data, name, low=False)
        _scenario(data, check, f"{name}/share", name, vit, chosen)
        if f"out/{name}/noshare/encoder_out" in check.outputs:
            nothing = {2: jnp.zeros_like(chosen[2])}
            _scenario(data, check, f"{name}/noshare", name, vit, nothing)
        low = encoder(data, name, low=True)
        order, carry = tokens(low, images_of(data, f"in/{name}/image"), chosen)
        check.equal(f"{name}/lowvar_share/encoder_out", take(encoded(low, carry), order))
        _targets(data, check, name)


def encoder(data: dict, scenario: str, *, low: bool) -> ViT:
    config, prefix = data["config"], "weights/encoder/"
    source = weights_below(data, prefix)
    source = {n: v for n, v in source.items() if "/" not in n}
    source["pos_embed"] = data[f"{prefix}{scenario}/pos_embed"]
    patch = config["patch_size"]
    spec = ViTSpec(
        width=config["d_model"],
        depth=config["n_layers"],
        heads=config["n_heads"],
        grid=tuple(n // patch for n in config["scenarios"][scenario]["img"]),
        patch=patch,
        class_token=True,
        final_norm=True,
        epsilon=config["ln_eps"],
    )
    return make_vit(lowered(source, EMBEDDING) if low else source, spec)


def tokens(vit: ViT, images, windows):
    """(slots in the order of the original, the carry): class token, unshared, shared patches."""
    carry = begin_merged(vit, images, windows)
    alive, window = np.asarray(carry.layout.valid), np.asarray(carry.window)
    order = [
        [0, *(1 + np.flatnonzero(a[1:] & (w == 1))), *(1 + np.flatnonzero(a[1:] & (w > 1)))]
        for a, w in zip(alive, window, strict=True)
    ]
    return np.array(order), carry


def take(x, order) -> np.ndarray:
    return np.take_along_axis(np.asarray(x), order[..., None], axis=1)


def encoded(vit: ViT, carry):
    """After all blocks and the last norm, dead slots hidden."""
    run = functools.partial(vit.run, span=range(len(vit.blocks)), keys=[None] * len(vit.blocks))
    return vit.norm(jax.jit(run)(carry.x, carry.layout))


def _scenario(data: dict, check, part: str, name: str, vit: ViT, windows) -> None:
    images = images_of(data, f"in/{name}/image")
    order, carry = tokens(vit, images, windows)
    grid = carry.grid
    window = np.asarray(carry.window).reshape(-1, *grid)
    check.equal(f"{part}/mask_shared", np.asarray(windows[2]))
    check.equal(f"{part}/mask_not_shared", window == 1)
    patch = order[:, 1:] - 1
    codes = np.stack(
        [
            window.reshape(len(window), -1)[np.arange(len(window))[:, None], patch],
            patch // grid[1],
            patch % grid[1],
        ],
        axis=-1,
    )
    check.equal(f"{part}/patch_code_scale_row_col", codes)
    check.equal(f"{part}/tokens_before_encoder", take(carry.x, order))
    pixels = np.asarray(image_pyramid(vit, images, (2,)))
    rows = np.asarray(merging.pyramid_rows(jnp.asarray(window), (2,)))
    own = np.take_along_axis(rows, patch, axis=1)
    embedded = vit.patch_embed(jnp.take_along_axis(jnp.asarray(pixels), own[..., None], axis=1))
    check.equal(f"{part}/patch_tokens_without_pos", embedded)
    shared = pixels[0, own[0, codes[0, :, 0] == 2]]
    side = vit.spec.patch
    check.equal(
        f"{part}/shared_patch_pixels_img0",
        shared.reshape(-1, side, side, 3).transpose(0, 3, 1, 2),
    )
    out = encoded(vit, carry)
    check.equal(f"{part}/encoder_out", take(out, order))
    cts_decoders(data, check, part, take(out, order))

    # The same by the one gather that the models use, packed as inference packs.
    packed = Packing(steps=4, windows=2).compact(carry)
    slots = vit.norm(
        vit.run(packed.x, packed.layout, range(len(vit.blocks)), keys=[None] * len(vit.blocks))
    )
    square = name == "square"
    head = mask_decoder(data) if square else linear_decoder(data)
    mask = readout(packed, head((slots,), packed.layout).mask)
    kind = "mask" if square else "linear"
    check.equal(f"{part}/{kind}_decoder_grid", to_maps(mask, grid))
    logits = Logits(jnp.asarray(mask).reshape(len(mask), *grid, -1), None)
    full = np.asarray(pixel_scores(head, logits, images.shape[1:3]))
    check.equal(f"{part}/final_logits_every4", full.transpose(0, 3, 1, 2)[..., ::4, ::4])
    check.equal(f"{part}/final_argmax", full.argmax(-1), full)


def _targets(data: dict, check, name: str) -> None:
    """What a policy learns from labels, with and without pixels of no class."""
    patch = data["config"]["patch_size"]

    def targets(label, border: bool) -> np.ndarray:
        labels = jnp.asarray(label.reshape(1, *label.shape[-2:]))
        return np.asarray(purity.targets_of(labels, (2,), patch, 255, {2: 1.0}, border)[2][0])

    plain = data[f"in/{name}/label_for_policy"]
    check.equal(f"{name}/policy_target_from_label", targets(plain, False))
    for ending, label in (("", plain), ("_with255", data[f"in/{name}/label_for_policy_with255"])):
        zero_is_none = reduce_zero(label)
        for kind, which, border in (
            ("ade20k", zero_is_none, True),
            ("pcontext", zero_is_none, False),
            ("cityscapes", label, False),
        ):
            found = targets(which, border)
            check.equal(f"{name}/policy_training_target_{kind}{ending}", found)
