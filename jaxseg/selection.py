"""Scores to keep masks: pure functions on flat arrays of S slots, the same for every layout.

``group`` numbers the competitions (image x class, or image) from 0; it is static how many there
are. Of equal scores the first slot wins, in rows as when packed, since both keep raster order.
"""

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
