"""Scores to keep masks: pure functions on flat arrays of S slots, the same for every layout.

``group`` numbers the competitions (image x class, or image) from 0; it is static how many there
are. Of equal scores the first slot wins, in rows as when packed, since both keep raster order.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def best_class(scores: Float[Array, "*n K"]) -> tuple[Float[Array, "*n"], Int[Array, "*n"]]:
    """The best score and its class, the first of equals; K - 1 where scores are NaN.

    Two reductions: XLA's CPU backend takes nine times as long for argmax over 150 classes.
    """
    top = scores.max(axis=-1)
    classes = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    at_top = jnp.where(scores == top[..., None], classes, scores.shape[-1] - 1)
    return top, at_top.min(axis=-1)


def above_threshold(score: Float[Array, " S"], threshold: float) -> Bool[Array, " S"]:
    """Strictly above: DToP's released code, where the paper (section 3.2) writes "at least"."""
    return score > threshold


def best_of_group(
    score: Float[Array, " S"],
    group: Int[Array, " S"],
    candidate: Bool[Array, " S"],
    groups: int,
    count: int = 1,
) -> Bool[Array, " S"]:
    """The ``count`` best candidates of every group, all where there are fewer.

    One scatter-max and one scatter-min per round: on a CPU an order of magnitude cheaper than a
    sort at the few rounds that DToP needs (docs/performance.md).
    """
    slots = jnp.arange(score.size, dtype=jnp.int32)

    def take_one(_, taken):
        open_ = candidate & ~taken
        value = jnp.where(open_, score, -jnp.inf)
        top = jnp.full(groups, -jnp.inf, score.dtype).at[group].max(value)
        ties = open_ & (value == top[group])
        first = jnp.full(groups, score.size, jnp.int32)
        first = first.at[group].min(jnp.where(ties, slots, score.size))
        return taken | (ties & (slots == first[group]))

    return jax.lax.fori_loop(0, count, take_one, jnp.zeros_like(candidate))


def top_share(
    score: Float[Array, " S"],
    group: Int[Array, " S"],
    candidate: Bool[Array, " S"],
    groups: int,
    share: float,
) -> Bool[Array, " S"]:
    """The best ``share`` of the candidates of every group, rounded down."""
    order = jnp.lexsort((-score, jnp.where(candidate, group, groups)))
    counts = jnp.zeros(groups, jnp.int32).at[group].add(candidate.astype(jnp.int32))
    begin = jnp.cumsum(counts) - counts
    rank = (
        jnp.zeros(score.size, jnp.int32)
        .at[order]
        .set(jnp.arange(score.size, dtype=jnp.int32), unique_indices=True)
    )
    wanted = jnp.floor(counts.astype(jnp.float32) * share).astype(jnp.int32)
    return candidate & (rank - begin[group] < wanted[group])


def best_of_row(
    score: Float[Array, "B C"], candidate: Bool[Array, "B C"], count: Int[Array, " B"] | int
) -> Bool[Array, "B C"]:
    """The ``count`` best candidates of every row, all where there are fewer; no NaN.

    The count-th best score is found bit by bit, in 32 passes over the scores: on a CPU an order of
    magnitude cheaper than sorting them.
    """
    bits = jax.lax.bitcast_convert_type(score.astype(jnp.float32) + 0.0, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    rising = jnp.where(bits >= sign, ~bits, bits | sign)  # in the order of the scores
    count = jnp.minimum(count, candidate.sum(axis=1))[:, None]

    def settle_bit(i, bound):
        tried = bound | (sign >> i.astype(jnp.uint32))
        enough = (candidate & (rising >= tried)).sum(axis=1, keepdims=True) >= count
        return jnp.where(enough, tried, bound)

    bound = jax.lax.fori_loop(0, 32, settle_bit, jnp.zeros_like(rising[:, :1]))
    above, ties = candidate & (rising > bound), candidate & (rising == bound)
    places = count - above.sum(axis=1, keepdims=True)
    return above | (ties & (jnp.cumsum(ties, axis=1) <= places))


def _evenly(samples: int | Int[Array, " B"], most: int) -> Float[Array, "... m"]:
    """So many points from 0 to 1; where images differ, the last one is repeated."""
    if isinstance(samples, int):
        return jnp.linspace(0.0, 1.0, samples, dtype=jnp.float32)
    last = samples[:, None].astype(jnp.float32) - 1.0
    return jnp.minimum(jnp.arange(most, dtype=jnp.float32), last) / jnp.maximum(last, 1.0)


def inverse_cdf(
    score: Float[Array, "B C"], candidate: Bool[Array, "B C"], samples: int | Int[Array, " B"]
) -> Bool[Array, "B C"]:
    """ATS (section 3.2): candidates whose share of the total is nearest to evenly spaced samples.

    Scores must not be negative. Sorted and summed up, then scaled so that the first is 0 and the
    last 1; ``samples`` points lie between the smallest sum that is not 0, and 1. Of two that are as
    near the one with the smaller score is taken. At most ``samples`` are, fewer where some lie
    close together: important ones stay apart, the unimportant share a point.
    """
    slots = score.shape[1]
    order = jnp.argsort(jnp.where(candidate, score, jnp.inf), axis=1)
    count = candidate.sum(axis=1, keepdims=True)
    behind = jnp.arange(slots) >= count
    sums = jnp.where(behind, 0.0, jnp.take_along_axis(score, order, axis=1)).astype(jnp.float32)
    sums = jnp.cumsum(sums, axis=1)
    low, high = sums[:, :1], sums[:, -1:]
    scaled = jnp.where(behind, jnp.inf, (sums - low) / jnp.maximum(high - low, 1e-30))
    first = jnp.where(scaled > 0, scaled, 1.0).min(axis=1, keepdims=True)
    points = first + (1.0 - first) * _evenly(samples, slots)
    above = jax.vmap(functools.partial(jnp.searchsorted, side="left"))(scaled, points)
    above = jnp.minimum(above, jnp.maximum(count - 1, 0))
    below = jnp.maximum(above - 1, 0)
    gap_above, gap_below = (
        jnp.abs(jnp.take_along_axis(scaled, at, axis=1) - points) for at in (above, below)
    )
    nearest = jnp.where(gap_below <= gap_above, below, above)
    # Of equal sums (scores of 0) the first in the order.
    sum_there = jnp.take_along_axis(scaled, nearest, axis=1)
    nearest = jax.vmap(functools.partial(jnp.searchsorted, side="left"))(scaled, sum_there)
    at = (jnp.arange(len(score))[:, None], jnp.take_along_axis(order, nearest, axis=1))
    return jnp.zeros_like(candidate).at[at].set(True) & candidate
