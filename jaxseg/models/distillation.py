"""What a frozen dense model says of the same images, and learning from it (DynamicViT)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.losses import Term, feature_distillation, score_distillation
from jaxseg.models.heads import AtmHead, CascadeHead
from jaxseg.models.network import TEACHER, Arrays, network
from jaxseg.models.segmenter import SegmenterSpec, on_grid
from jaxseg.tokens import Carry, Rows

Said = tuple[Array, Float[Array, "B N D"]]  # logits of the last head, last features of the patches


def teacher_arrays(spec: SegmenterSpec, arrays: Arrays) -> Arrays:
    """Of a dense model with this ViT and these heads: copies of what distillation needs."""
    last = f"heads.{len(spec.heads) - 1}."
    needed = {n: v for n, v in arrays.items() if n.startswith(("vit.", last))}
    return {TEACHER + n.replace(last, "heads.0.", 1): v for n, v in needed.items()}


def teacher(spec: SegmenterSpec, arrays: Arrays) -> Callable[[Float[Array, "B H W 3"]], Said]:
    """The dense model of ``arrays``, those of `teacher_arrays` with their prefix removed."""
    head = spec.heads[-1]
    dense = network(SegmenterSpec(spec.vit, (head,)))
    frozen = dense.bind(*dense.split(arrays))

    def says(images):
        prefix, grid = int(spec.vit.class_token), frozen.vit.grid(*images.shape[1:3])
        rows = tuple(frozen.vit(images, head.taps).values())
        carry = Carry(rows[-1], Rows(None, prefix), grid)
        return on_grid(*frozen.at_head(0, carry, rows, None)), rows[-1][:, prefix:]

    return says


def distilled(
    head, student: Said, theirs: Said, kept: Bool[Array, "B N"], weight: float
) -> dict[str, Term]:
    """``distil.*``: scores of ``head``, and features of the patches that are ``kept``."""
    scores = [class_shares(head, logits) for logits, _ in (student, theirs)]
    return {
        "distil.scores": score_distillation(*scores, weight),
        "distil.features": feature_distillation(student[1], theirs[1], kept, weight),
    }


def class_shares(head, logits) -> Float[Array, "B r c K"]:
    """Class scores on the grid, none negative, of any head."""
    if isinstance(head, CascadeHead):
        return head.grid_scores(logits, logits[-1].mask.shape[1:3])
    if isinstance(head, AtmHead):
        return head.grid_scores(logits, logits.mask.shape[1:3])
    return jax.nn.softmax(logits.mask.astype(jnp.float32))
