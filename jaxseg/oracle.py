"""Merging told by the labels: the bound that every policy is read against."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data.transforms import keep_ratio_size, test_label
from jaxseg.errors import UserError
from jaxseg.inference import EvalSpec
from jaxseg.models.policy import PATCH
from jaxseg.purity import ONE_CLASS, targets_of, whole_patches

_SURE = 30.0  # logit of a window that shows one class; of the others the negative


def told(
    arrays: dict, how: EvalSpec, sides: tuple[int, ...], classes: int, purity: dict[int, float]
) -> Callable[[Sequence[dict]], dict]:
    """A function from a batch of samples to ``arrays`` with its windows of one class beside them.

    ``purity``: per side, the share of pixels that the largest class must have; 1 where not said.
    Raises UserError: images that are cut into windows or seen several times, which nobody labels.
    """
    if how.mode != "whole" or len(how.scales) > 1 or how.flip:
        raise UserError(
            "config.method.policy='oracle' takes images whole: set config.eval.mode=whole, one "
            "scale, no flip"
        )
    share = {side: purity.get(side, 1.0) for side in sides}

    @jax.jit
    def windows(labels):
        targets = targets_of(whole_patches(labels, PATCH), sides, PATCH, classes, share, False)
        return {
            f"policy.windows.{i}": jnp.where(targets[side] == ONE_CLASS, _SURE, -_SURE)
            for i, side in enumerate(sides)
        }

    def of_batch(samples: Sequence[dict]) -> dict:
        labels = [_fitted(sample["label"], how) for sample in samples]
        labels += [labels[-1]] * (how.batch_size - len(labels))
        return arrays | windows(np.stack(labels))

    return of_batch


def _fitted(label: np.ndarray, how: EvalSpec) -> np.ndarray:
    size = keep_ratio_size(label.shape, *how.resize) if how.resize else label.shape
    return test_label(label, size)
