"""Tokens of merged windows: mean pixels through the ViT's own patch embedding (CTS, section 3.3).

CTS halves the image for its windows of 2 x 2; the same rule for larger windows is what STEP's
unspecified embedding is taken to be: the window scaled down to one patch, each pixel the mean of
those it replaces, and the mean of its patches' position vectors. Bilinear halving of halves is that
mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg import merging
from jaxseg.models.policy import PolicySpec
from jaxseg.models.vit import ViT
from jaxseg.tokens import Carry, Rows

Windows = Mapping[int, Bool[Array, "B R C"]]


@dataclass(frozen=True)
class MergeSpec:
    """``policy`` grades windows, ``decide(scores by side, grid) -> windows by side`` accepts them.

    ``decide`` has ``sides``, the ones it looks at.
    """

    policy: PolicySpec
    decide: Callable[[Mapping[int, Float[Array, "B R C"]], merging.Grid], Windows]


def begin_merged(vit: ViT, images: Float[Array, "B H W 3"], windows: Windows) -> Carry:
    """All patches in rows; each accepted window lives in the slot of its first patch alone."""
    grid = vit.grid(*images.shape[1:3])
    batch, sides = len(images), tuple(sorted(windows))
    window = merging.window_map(windows, grid)
    rows = merging.pyramid_rows(window, sides)
    pixels = jax.vmap(jnp.take, (0, 0, None))(image_pyramid(vit, images, sides), rows, 0)
    positions = merging.pyramid(vit.positions(grid).reshape(1, *grid, -1), sides)[0][rows]
    x = vit.with_class_token(vit.patch_embed(pixels) + positions.astype(pixels.dtype))
    speaker, prefix = merging.speakers(window), int(vit.spec.class_token)
    alive = speaker == jnp.arange(speaker.shape[1])
    valid = jnp.pad(alive, ((0, 0), (prefix, 0)), constant_values=True)
    owner = jnp.arange(batch)[:, None] * valid.shape[1] + prefix + speaker
    return Carry(x, Rows(valid, prefix), grid, owner, window=window.reshape(batch, -1))


def image_pyramid(
    vit: ViT, images: Float[Array, "B H W 3"], sides: Sequence[int]
) -> Float[Array, "B L F"]:
    """Pixels of all patches, then of all windows of each of ``sides`` (rising), as in `pyramid`.

    A window's pixels are means over side x side pixels, so that it is as large as a patch.
    """
    images, side = vit.padded(images), 1
    levels = [vit.patches(images)]
    for wanted in sides:
        while side < wanted:
            images, side = _halved(images, 2 * vit.spec.patch), 2 * side
        levels.append(vit.patches(images))
    return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in levels], axis=1)


def _halved(images: Float[Array, "B H W 3"], window: int) -> Float[Array, "B h w 3"]:
    """Means of 2 x 2 pixels; what fills no full window is cut."""
    batch, height, width, _ = images.shape
    height, width = height // window * window, width // window * window
    pairs = images[:, :height, :width].reshape(batch, height // 2, 2, width // 2, 2, 3)
    return pairs.mean(axis=(2, 4))
