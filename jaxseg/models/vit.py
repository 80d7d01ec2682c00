"""The plain vision transformer of mmsegmentation and timm: pre-norm blocks, exact GELU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.models.attention import attend, class_attention
from jaxseg.models.layers import LayerNorm, Linear, drop_path, gelu, parameter, subkeys
from jaxseg.resize import resize_position_embedding
from jaxseg.tokens import Layout, Packed, Rows

VARIANTS = {  # width, depth, heads
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "smoke": (32, 3, 2),  # for tests
}


@dataclass(frozen=True)
class ViTSpec:
    """Sizes of a ViT. ``grid`` is the (rows, columns) of the stored position embedding.

    ``class_token`` keeps a class token in the encoder (SETR); SegViT and DToP drop it before block
    0, which is the same as not having one. ``final_norm``: on the last block's output (SETR).
    ``epsilon``: of the layer norms; 1e-6 in AugReg, timm and mmsegmentation, 1e-5 in Segmenter.
    """

    width: int
    depth: int
    heads: int
    grid: tuple[int, int]
    patch: int = 16
    mlp_ratio: int = 4
    class_token: bool = False
    final_norm: bool = False
    drop_path: float = 0.0
    epsilon: float = 1e-6


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int):
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def __call__(self, x: Float[Array, "*slots D"]) -> Float[Array, "*slots D"]:
        return self.fc2(gelu(self.fc1(x)))


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one packed projection; output columns are [q | k | v]."""

    def __init__(self, width: int, heads: int):
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def __call__(self, x: Float[Array, "*slots D"], layout: Layout) -> Float[Array, "*slots D"]:
        q, k, v = self._projected(x)
        return self.out(attend(q, k, v, layout).reshape(x.shape))

    def heard(
        self, x: Float[Array, "*slots D"], layout: Layout
    ) -> tuple[Float[Array, "*slots D"], Float[Array, "*slots h+1"]]:
        """Beside the same: what the class token pays to a slot in each head, and the length of the
        slot's value over all heads, float32. The class token is the first slot of its image."""
        q, k, v = self._projected(x)
        length = jnp.sqrt(jnp.square(v.astype(jnp.float32)).sum((-2, -1)))
        found = jnp.concatenate([class_attention(q, k, layout), length[..., None]], axis=-1)
        return self.out(attend(q, k, v, layout).reshape(x.shape)), found

    def _projected(self, x):
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, x.shape[-1] // self.heads)
        return tuple(qkv[..., i, :, :] for i in range(3))


class Block(nnx.Module):
    """x += DropPath(attention(norm(x))); x += DropPath(mlp(norm(x)))."""

    def __init__(self, spec: ViTSpec, drop_path_rate: float):
        self.norm1 = LayerNorm(spec.width, spec.epsilon)
        self.attn = SelfAttention(spec.width, spec.heads)
        self.norm2 = LayerNorm(spec.width, spec.epsilon)
        self.mlp = Mlp(spec.width, spec.width * spec.mlp_ratio)
        self.drop_path_rate = drop_path_rate

    def __call__(
        self, x: Float[Array, "*slots D"], layout: Layout, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*slots D"]:
        key1, key2 = subkeys(key, 2)
        return self.transform(self.mix(x, layout, key=key1), layout, key=key2)

    def mix(
        self, x: Float[Array, "*slots D"], layout: Layout, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*slots D"]:
        """The first half: attention."""
        return x + drop_path(self.attn(self.norm1(x), layout), self.drop_path_rate, key)

    def mix_heard(
        self, x: Float[Array, "*slots D"], layout: Layout, *, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "*slots D"], Float[Array, "*slots h+1"]]:
        """The first half, and what `SelfAttention.heard` says about it."""
        mixed, found = self.attn.heard(self.norm1(x), layout)
        return x + drop_path(mixed, self.drop_path_rate, key), found

    def transform(
        self, x: Float[Array, "*slots D"], layout: Layout, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*slots D"]:
        """The second half: the MLP."""
        if isinstance(layout, Packed) and jax.default_backend() == "cpu":
            return x + _in_chunks(lambda rows: self.mlp(self.norm2(rows)), x)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, key)


def _in_chunks(of_rows: Callable[[Array], Array], x: Float[Array, "S D"]) -> Float[Array, "S D"]:
    """``of_rows`` on up to 1024 rows at a time, whose hidden values then stay in the caches."""
    chunk = max(n for n in range(1, 1025) if len(x) % n == 0)
    if chunk < 256 or chunk == len(x):
        return of_rows(x)
    return jax.lax.map(of_rows, x.reshape(-1, chunk, x.shape[-1])).reshape(x.shape)


class ViT(nnx.Module):
    """Patches in, tokens out. Tokens are raster order after an optional class token."""

    def __init__(self, spec: ViTSpec):
        self.spec = spec
        self.patch_embed = Linear(spec.patch * spec.patch * 3, spec.width)
        self.pos_embed = parameter(*spec.grid, spec.width)
        if spec.class_token:  # holds the token and its position embedding in one vector
            self.class_token = parameter(spec.width)
        rates = [spec.drop_path * i / max(spec.depth - 1, 1) for i in range(spec.depth)]
        self.blocks = nnx.List([Block(spec, rate) for rate in rates])
        if spec.final_norm:
            self.norm = LayerNorm(spec.width, spec.epsilon)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; a partial patch counts as one."""
        return -(-height // self.spec.patch), -(-width // self.spec.patch)

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B T D"]:
        """Tokens before the first block. Images are zero-padded at the bottom and right."""
        pixels = self.patches(self.padded(images))
        batch, rows, columns, _ = pixels.shape
        x = self.patch_embed(pixels.reshape(batch, rows * columns, -1))
        return self.with_class_token(x + self.positions((rows, columns))[None].astype(x.dtype))

    def padded(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Zeros at the bottom and right up to whole patches."""
        height, width = images.shape[1:3]
        rows, columns = (n * self.spec.patch for n in self.grid(height, width))
        return jnp.pad(images, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))

    def patches(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B r c F"]:
        """The pixels of each patch of padded images, row by row."""
        patch = self.spec.patch
        batch, rows, columns = len(images), *(n // patch for n in images.shape[1:3])
        x = images.reshape(batch, rows, patch, columns, patch, 3)
        return x.swapaxes(2, 3).reshape(batch, rows, columns, patch * patch * 3)

    def positions(self, grid: tuple[int, int]) -> Float[Array, "N D"]:
        """The position embedding on ``grid``, in raster order."""
        resized = resize_position_embedding(self.pos_embed[...], grid)
        return resized.reshape(-1, self.spec.width)

    def with_class_token(self, x: Float[Array, "B N D"]) -> Float[Array, "B T D"]:
        """The class token first, where there is one."""
        if not self.spec.class_token:
            return x
        token = self.class_token[...].astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, len(token))), x], axis=1)

    def run(
        self,
        x: Float[Array, "*slots D"],
        layout: Layout,
        span: range,
        *,
        keys: Sequence[Key[Array, ""] | None],
    ) -> Float[Array, "*slots D"]:
        """Tokens after the blocks of ``span`` (0-based); ``keys``: one per block of the ViT."""

        def blocks(x):
            for i in span:
                x = self.blocks[i](x, layout, key=keys[i])
            return x

        whole = isinstance(layout, Rows) and layout.valid is None
        if whole and keys[0] is None and len(x) > 1 and jax.default_backend() == "cpu":
            # Image by image through all of the span: the activations of one stay in the caches.
            return jax.lax.map(lambda image: blocks(image[None])[0], x)
        return blocks(x)

    def normed(self, x: Float[Array, "*slots D"], block: int) -> Float[Array, "*slots D"]:
        """What heads read after a block: with ``final_norm`` the last output is normalised."""
        last = block == len(self.blocks) - 1
        return self.norm(x) if last and self.spec.final_norm else x

    def __call__(
        self, images: Float[Array, "B H W 3"], taps: tuple[int, ...]
    ) -> dict[int, Float[Array, "B T D"]]:
        """Tokens after the blocks ``taps``, nobody leaving; a class token first if there is one."""
        x, first, out = self.embed(images), 0, {}
        layout = Rows(None, int(self.spec.class_token))
        for tap in taps:
            x = self.run(x, layout, range(first, tap + 1), keys=[None] * len(self.blocks))
            out[tap], first = self.normed(x, tap), tap + 1
        return out
