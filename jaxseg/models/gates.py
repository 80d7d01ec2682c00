"""Small networks that say for every token whether to keep it, and how training samples from them.

Logits have two columns, keep and drop.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt32

from jaxseg.models.layers import LayerNorm, Linear, gelu, parameter
from jaxseg.tokens import Layout, Rows

_ROWS = Rows(None, 0)


class Gate(nnx.Module):
    """SViT's (section 3.2): LayerNorm, linear to a quarter, GELU, linear."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width, 1e-5)
        self.fc1 = Linear(width, width // 4)
        self.fc2 = Linear(width // 4, 2)

    def __call__(
        self, x: Float[Array, "*slots D"], seen: Bool[Array, "*slots"] | None = None
    ) -> Float[Array, "*slots 2"]:
        """Every token by itself, whoever is ``seen``; float32."""
        del seen
        return self.fc2(gelu(self.fc1(self.norm(x)))).astype(jnp.float32)

    @staticmethod
    def macs(width: int) -> float:
        """Per token, as `jaxseg.flops` counts."""
        return 5 * width + width * (width // 4) + 2 * (width // 4)


class Predictor(nnx.Module):
    """DynamicViT's (section 3.2): half of a token's features are its own, half the image's mean."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width, 1e-5)
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, width // 2)
        self.fc3 = Linear(width // 2, width // 4)
        self.fc4 = Linear(width // 4, 2)

    def __call__(
        self,
        x: Float[Array, "*slots D"],
        seen: Float[Array, "*slots"] | Bool[Array, "*slots"] | None = None,
        layout: Layout = _ROWS,
    ) -> Float[Array, "*slots 2"]:
        """``seen``: what each token weighs in the mean of its image; float32."""
        local = gelu(self.fc1(self.norm(x)))
        local, overall = jnp.split(local, 2, axis=-1)
        seen = jnp.ones(x.shape[:-1]) if seen is None else seen.astype(jnp.float32)
        seen = seen[..., None]
        total = jnp.maximum(layout.total(seen), 1e-6)  # a count in bfloat16 stops at 256
        mean = (layout.total(seen * overall.astype(jnp.float32)) / total).astype(x.dtype)
        mean = jnp.broadcast_to(layout.of_image(mean, overall), local.shape)
        joined = jnp.concatenate([local, mean], axis=-1)
        return self.fc4(gelu(self.fc3(gelu(self.fc2(joined))))).astype(jnp.float32)

    @staticmethod
    def macs(width: int) -> float:
        """Per token, as `jaxseg.flops` counts."""
        half, quarter = width // 2, width // 4
        return 5 * width + width * width + width * half + half * quarter + 2 * quarter


class Chooser(nnx.Module):
    """The parameters of a method: a gate for each cut, and a class token where the ViT has none."""

    def __init__(self, width: int, gates: list[nnx.Module], class_token: bool):
        if gates:
            self.gates = nnx.List(gates)
        if class_token:
            self.class_token = parameter(width)


def straight_through(
    logits: Float[Array, "*n 2"], noise: Float[Array, "*n 2"], temperature: float = 1.0
) -> Float[Array, " *n"]:
    """Hard Gumbel-softmax: exactly 1 (keep) or 0, with the gradient of the soft sample.

    ``noise`` is Gumbel(0, 1): the sample is 1 with the probability that the logits give to keep.
    """
    soft = jax.nn.softmax((jax.nn.log_softmax(logits) + noise) / temperature)[..., 0]
    hard = (soft > 0.5).astype(soft.dtype)
    return jax.lax.stop_gradient(hard - soft) + soft


def sampled(
    logits: Float[Array, "B C 2"], noise: UInt32[Array, " B"], number: int
) -> Bool[Array, "B C"]:
    """Keep with the probability that the logits say; draw ``number`` of every image's own noise."""

    def of_image(logits, seed):
        key = jax.random.fold_in(jax.random.key(seed), number)
        return logits + jax.random.gumbel(key, logits.shape)

    noisy = jax.vmap(of_image)(logits, noise)
    return noisy[..., 0] > noisy[..., 1]


def fingerprint(images: Float[Array, "B H W 3"], seed: int) -> UInt32[Array, " B"]:
    """A number per image from its pixels and ``seed``: the same in every batch and layout.

    From every eighth row and column: it need not tell apart all images there are.
    """
    few = images[:, ::8, ::8].astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(few, jnp.uint32)
    bits = bits.reshape(len(images), -1)
    place = jnp.arange(bits.shape[1], dtype=jnp.uint32) * jnp.uint32(2654435761) | jnp.uint32(1)
    mixed = (bits ^ (bits >> jnp.uint32(15))) * place
    return (mixed ^ (mixed >> jnp.uint32(13))).sum(axis=1, dtype=jnp.uint32) + jnp.uint32(seed)
