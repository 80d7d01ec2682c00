"""Training losses as sums with their normalisers, so that several devices add up to one batch.

Every loss returns `Term`s. The value of a term is total / count; on several devices both are summed
before the division, which makes the result that of the joined batch. Names follow mmsegmentation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

IGNORE = 255


class Term(NamedTuple):
    """One loss term: ``total`` (already weighted) over ``count``."""

    total: Float[Array, ""]
    count: Float[Array, ""]

    def value(self, devices_mean=lambda count: count) -> Float[Array, ""]:
        """total / count. ``devices_mean`` averages the count over devices; 0 / 0 is 0."""
        return self.total / jnp.maximum(devices_mean(self.count), 1e-6)


def one_hot_masks(labels: UInt8[Array, "B H W"], classes: int) -> Float[Array, "B K H W"]:
    """One binary mask per class. Ignored pixels are negatives in all, as in the released code."""
    return (labels[:, None] == jnp.arange(classes, dtype=labels.dtype)[:, None, None]).astype(
        jnp.float32
    )


def focal_and_dice(
    mask_logits: Float[Array, "B K H W"], targets: Float[Array, "B K H W"]
) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
    """Sigmoid focal loss (alpha 0.25, gamma 2, mean over pixels) and dice loss of each mask.

    SegViT's and DToP's ATM loss. Written on exp(-|x|) so that one exponential and one logarithm per
    pixel serve both.
    """
    positive = mask_logits >= 0  # one side for all: the gradients of max and |x| disagree at 0
    small = jnp.exp(jnp.where(positive, -mask_logits, mask_logits))
    softplus = jnp.where(positive, mask_logits, 0.0) + jnp.log1p(small)
    p = jnp.where(positive, 1.0, small) / (1.0 + small)
    cross_entropy = softplus - mask_logits * targets
    wrong = p + targets - 2.0 * p * targets  # 1 - p_t
    alpha = 0.75 - 0.5 * targets
    focal = (alpha * cross_entropy * jnp.square(wrong)).mean((-2, -1))
    overlap = (p * targets).sum((-2, -1))
    size = p.sum((-2, -1)) + targets.sum((-2, -1))
    return focal, 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)


def mask_terms(
    mask_logits: Float[Array, "B K H W"], labels: UInt8[Array, "B H W"]
) -> dict[str, Term]:
    """20 x focal and 1 x dice over the masks of the classes present, per (image, present class).

    ``mask_logits`` are at label resolution; the label is never scaled down.
    """
    targets = one_hot_masks(labels, mask_logits.shape[1])
    present = targets.any((-2, -1)).astype(jnp.float32)
    # Recomputed in the backward pass: full-resolution maps of all classes are the largest arrays.
    focal, dice = jax.checkpoint(focal_and_dice)(mask_logits.astype(jnp.float32), targets)
    count = present.sum()
    return {
        "loss_mask": Term(20.0 * (focal * present).sum(), count),
        "loss_dice": Term((dice * present).sum(), count),
    }


def presence_term(class_logits: Float[Array, "B K 2"], present: Float[Array, "B K"]) -> Term:
    """DToP: two-way cross entropy per class query, column 0 = present; absent ones weigh 0.1."""
    log_p = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    nll = -jnp.where(present > 0, log_p[..., 0], log_p[..., 1])
    weight = 0.1 + 0.9 * present
    return Term((weight * nll).sum(), weight.sum())


def query_class_term(class_logits: Float[Array, "B K K+1"], present: Float[Array, "B K"]) -> Term:
    """SegViT v1: query k says class k if present, else "no object" (last column, weight 0.1)."""
    log_p = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    own = jnp.diagonal(log_p[..., :-1], axis1=-2, axis2=-1)
    nll = -jnp.where(present > 0, own, log_p[..., -1])
    weight = 0.1 + 0.9 * present
    return Term((weight * nll).sum(), weight.sum())


def present_classes(labels: UInt8[Array, "B H W"], classes: int) -> Float[Array, "B K"]:
    """1 where a class has at least one pixel in the image."""
    return one_hot_masks(labels, classes).any((-2, -1)).astype(jnp.float32)


def pixel_cross_entropy(
    logits: Float[Array, "B H W K"], labels: UInt8[Array, "B H W"], weight: float
) -> Term:
    """Softmax cross entropy, mean over all pixels: ignored ones add 0 but stay in the denominator.

    That is mmsegmentation's default (avg_non_ignore=False).
    """
    valid = labels != IGNORE
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    index = jnp.where(valid, labels, 0).astype(jnp.int32)
    nll = -jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
    count = jnp.asarray(labels.size, jnp.float32)
    return Term(weight * jnp.where(valid, nll, 0.0).sum(), count)


def usage_term(
    used: Sequence[Float[Array, "B P"]],
    among: Sequence[Bool[Array, "B P"]],
    targets: Sequence[float],
    weight: float,
    per_image: bool,
    batch_axis: str | None = None,
) -> Term:
    """Squared distance between the share of patches used and a target, mean over the choices.

    ``among``: those that could be used; nobody else is. ``per_image``: of every image, then
    averaged (DynamicViT); else the share of the whole batch (SViT), over all devices along
    ``batch_axis``.
    """
    targets = jnp.asarray(targets, jnp.float32)
    used = jnp.stack([u.astype(jnp.float32).sum(axis=1) for u in used])  # [choices, B]
    there = jnp.stack([a.astype(jnp.float32).sum(axis=1) for a in among])
    if per_image:
        gaps = jnp.square(used / jnp.maximum(there, 1.0) - targets[:, None])
        gaps = jnp.where(there > 0, gaps, 0.0).mean(axis=0)
        return Term(weight * gaps.sum(), jnp.asarray(gaps.size, jnp.float32))
    used, there = used.sum(axis=1), there.sum(axis=1)
    if batch_axis is not None:
        used, there = (jax.lax.psum(total, batch_axis) for total in (used, there))
    gaps = jnp.square(used / jnp.maximum(there, 1.0) - targets)
    return Term(weight * jnp.where(there > 0, gaps, 0.0).mean(), jnp.ones(()))


def score_distillation(
    student: Float[Array, "*n K"], teacher: Float[Array, "*n K"], weight: float
) -> Term:
    """KL(teacher || student) of class scores (not negative, scaled to a sum of 1), mean over n."""
    p, q = (
        (scores + 1e-6) / (scores + 1e-6).sum(axis=-1, keepdims=True)
        for scores in (jax.lax.stop_gradient(teacher), student)
    )
    gap = (p * (jnp.log(p) - jnp.log(q))).sum(axis=-1)
    return Term(weight * gap.sum(), jnp.asarray(gap.size, jnp.float32))


def feature_distillation(
    student: Float[Array, "B N D"],
    teacher: Float[Array, "B N D"],
    kept: Bool[Array, "B N"],
    weight: float,
) -> Term:
    """Mean squared difference of the features of the patches kept."""
    gap = (student - jax.lax.stop_gradient(teacher)).astype(jnp.float32)
    gap = jnp.where(kept, jnp.square(gap).mean(axis=-1), 0.0)
    return Term(weight * gap.sum(), kept.sum().astype(jnp.float32))
