"""A ViT that names the one class of an image: a linear layer on the class token (DeiT, AugReg).

To the segmenters it is a head whose map has a single cell: methods, executors and programs serve
both. It reads the class token after the final norm; what dropped patches become is nothing to it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.losses import Term
from jaxseg.models.heads import Logits
from jaxseg.models.layers import Linear
from jaxseg.tokens import Rows


@dataclass(frozen=True)
class ClassSpec:
    """How many classes an image may have."""

    classes: int


class ClassHead(nnx.Module):
    """One tap, in rows with the class token first; scores on a grid of one cell."""

    per_token = True

    def __init__(self, token_width: int, spec: ClassSpec):
        self.linear = Linear(token_width, spec.classes)

    def __call__(
        self,
        taps: tuple[Float[Array, "B C D"]],
        layout: Rows,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        del layout, key
        (tokens,) = taps
        return Logits(self.linear(tokens[:, :1])[:, None], None)

    def grid_scores(self, logits: Logits, size: tuple[int, int]) -> Float[Array, "B 1 1 K"]:
        """Before the softmax, float32."""
        del size
        return logits.mask.astype(jnp.float32)

    def losses(self, logits: Logits, labels: Float[Array, "B K"]) -> dict[str, Term]:
        """Cross entropy with shares of classes that sum to 1: smoothed and mixed labels too."""
        log_p = jax.nn.log_softmax(logits.mask[:, 0, 0].astype(jnp.float32))
        return {"loss_ce": Term(-(labels * log_p).sum(), jnp.asarray(len(labels), jnp.float32))}
