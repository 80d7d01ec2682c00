"""Drawn decisions instead of graded ones: given shares of tokens stay, given shares merge.

Everything else is run as it is, also the grading, whose result counts for nothing: times are those
of real decisions, and figures of different models compare.
"""

from dataclasses import replace

import jax
import numpy as np

from jaxseg.models.segmenter import SegmenterSpec, with_decisions


def draw_rates(
    keep: tuple[float, ...], rounds: int, batch: int, rng: np.random.Generator
) -> np.ndarray:
    """float32 [rounds, exits, batch]: shares still inside after each exit, ``keep`` on average.

    Stratified uniform over all images of all rounds, from a third of the mean to as far above it,
    or to 1 if that is nearer; an image that keeps many tokens at one exit does so at the next.
    """
    count = rounds * batch
    position = (rng.permutation(count) + rng.random(count)) / count
    mean = np.array(keep)
    reach = np.minimum(2 / 3 * mean, 1 - mean)
    rates = mean + np.outer(2 * position - 1, reach)
    rates = np.minimum.accumulate(rates, axis=1).astype(np.float32)
    return rates.reshape(rounds, batch, len(keep)).swapaxes(1, 2)


def forced_spec(spec: SegmenterSpec, rates: jax.Array) -> SegmenterSpec:
    """``spec`` with lots drawn instead of grades. rates float32 [merged sides + exits, B]."""
    sides = spec.merge.decide.sides if spec.merge else ()
    if spec.merge:
        spec = replace(spec, merge=replace(spec.merge, decide=forced_merge(sides, rates)))
    # Of those still inside, since counts after merging differ from image to image.
    stays = [*rates[len(sides) :]]
    stays = [now / before for now, before in zip(stays, [1.0, *stays], strict=False)]
    natural = [spec.heads[i].decide for i in spec.exits]
    drawn = [
        forced(decide, stay, n) for n, (decide, stay) in enumerate(zip(natural, stays, strict=True))
    ]
    return with_decisions(spec, drawn)


def forced_merge(sides: tuple[int, ...], rates: jax.Array):
    """Accepts a share ``rates`` [sides, B] of the windows of each side; the policy is run."""

    def decide(scores, grid):
        del grid
        return {
            side: jax.random.uniform(jax.random.key(side), scores[side].shape) + 0.0 * scores[side]
            < rate[:, None, None]
            for side, rate in zip(sides, rates, strict=False)
        }

    return decide


def forced(decide, stays: jax.Array, seed: int):
    """``decide`` of random tokens instead of confident ones: a share ``stays`` [B] is not easy.

    The confidences are read (times 0), so that grading is not left out as dead code.
    """

    def decision(grades):
        lot = jax.random.uniform(jax.random.key(seed), grades.confidence.shape)
        lot += 0.0 * grades.confidence
        easy = grades.graded & (lot >= stays[grades.image])
        return decide.plan(grades._replace(confidence=lot), easy)

    return decision
