"""Asks a network whose methods choose tokens what they have chosen: what `jaxseg.usage` counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jaxseg.bypass import of_patches
from jaxseg.data.classes import Source
from jaxseg.data.transforms import keep_ratio_size, test_image, test_label
from jaxseg.execute import Masked, Packing, leave
from jaxseg.inference import EvalSpec
from jaxseg.models.network import Arrays, Network
from jaxseg.models.sparse import SparseSegmenter
from jaxseg.progress import Progress
from jaxseg.usage import Usage, went


@dataclass(frozen=True)
class UsageView:
    """Asks a network for its choices: whole images, one at a time, fitted as ``how`` says.

    Also where the evaluation itself goes by windows, or takes several scales or mirrored images:
    then these are not all the choices it made, or others.
    """

    network: Network
    how: EvalSpec

    def __call__(
        self, arrays: Arrays, image: UInt8[np.ndarray, "H W 3"]
    ) -> Bool[np.ndarray, "L r c"]:
        """Who goes through each block that a head reads from, on the grid of patches."""
        fit = self.how.resize or (None, None)
        given = test_image(image, *fit, self.how.mean, self.how.std)
        chosen = np.asarray(self._run(arrays, given[None]))[0]
        return went(chosen, self.network.spec.cuts, self.blocks)

    def seen(self, label: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
        """The label map at the size at which the network sees the image."""
        fits = self.how.resize
        return test_label(label, keep_ratio_size(label.shape, *fits) if fits else label.shape)

    @property
    def blocks(self) -> int:
        return self.network.spec.heads[-1].taps[-1] + 1

    @cached_property
    def _run(self):
        # Where counts are known that packs, in one program; else it masks, instead of compiling a
        # program per capacity. Both choose the same.
        executor = self.network.spec.executor or Masked()

        def run(arrays, images):
            return choices(self.network.bind(*self.network.split(arrays)), images, executor)

        return jax.jit(run)


def choices(
    model: SparseSegmenter, images: Float[Array, "B H W 3"], executor: Masked | Packing
) -> Bool[Array, "B cuts r c"]:
    """The patches that the executor lays out at each cut. Nothing behind the last one is run."""
    carry, found = model.begin(images), []
    for number in range(model.stages - 1):
        carry = leave(executor, *model.decide(carry, number), number)
        inside = of_patches(carry, carry.inside[..., None])
        found.append(inside.reshape(-1, *carry.grid))
    return jnp.stack(found, axis=1)


def measure(view: UsageView, arrays: Arrays, samples: Source | Sequence[Mapping]) -> Usage:
    """`Usage` over all ``samples``, one at least; each has "image" and "label" as in `Source`."""
    spec, total = view.network.spec, None
    with Progress(len(samples), "usage") as progress:
        for i in range(len(samples)):
            sample = samples[i]
            through, label = view(arrays, sample["image"]), view.seen(sample["label"])
            found = Usage.of_image(through, label, spec.vit.patch, spec.classes)
            total = found if total is None else total + found
            progress.update(i + 1)
    return total
