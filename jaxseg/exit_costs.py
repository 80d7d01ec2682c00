"""Where early exits cost accuracy: by the exit at which a pixel's patch left.

Two things can go wrong. A patch leaves with a label that later layers would have mended, or one
that stays is worse off without those that left. So the pixels of a set are parted by where their
patch left, and each part is judged twice: by what was answered with exits, and by what the same
weights answer densely.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxseg.data.classes import IGNORE, Classes
from jaxseg.inference import Prediction
from jaxseg.metrics import confusion, percent, ratio, summarise
from jaxseg.parallel import gather
from jaxseg.windows import Size

EARLY, DENSE = "model", "dense"  # the names under which `jaxseg.evaluation` knows the two


def left_of_pixels(
    left: Int[np.ndarray, "r c"], given: Size, patch: int, size: Size
) -> Int[np.ndarray, "H W"]:
    """The exit of each pixel's patch, -1 if at none, for an image of ``size`` that the network saw
    at ``given``; a patch is ``patch`` pixels wide there."""
    rows, columns = (
        ((np.arange(n) + 0.5) * seen / n / patch).astype(int)
        for n, seen in zip(size, given, strict=True)
    )
    return left[rows][:, columns]


class ExitCosts:
    """Counts for `jaxseg.evaluation.evaluate(each=)`; ``matrices`` is int64 [exits + 1, 2, K+1, K].

    The last part are the pixels whose patches stayed; of the two, early comes first. An image that
    is several inputs of the network (windows, views) is left out: it left in several ways.
    ``counted``: the others.
    """

    def __init__(self, exits: int, patch: int, classes: int):
        self.patch, self.counted = patch, 0
        self.matrices = np.zeros((exits + 1, 2, classes + 1, classes), np.int64)

    def __call__(self, sample: dict, answers: Mapping[str, Prediction]) -> None:
        """Adds one image."""
        early, label = answers[EARLY], sample["label"]
        if len(early.inputs) > 1:
            return
        self.counted += 1
        left = left_of_pixels(early.left[0], early.inputs[0], self.patch, label.shape)
        for number in range(-1, len(self.matrices) - 1):
            part = np.where(left == number, label, IGNORE)
            for way, name in enumerate((EARLY, DENSE)):
                found = confusion(answers[name].labels, part, self.matrices.shape[-1])
                self.matrices[number, way] += found

    def summary(self, layers: Sequence[int], classes: Classes) -> list[dict]:
        """A part after each of ``layers`` (1-based), and with layer None who stayed.

        images: how many were counted. pixels: its share of those of them that are labelled.
        accuracy, dense_accuracy: share of right ones.
        miou_change: of the dense model, if this part alone were answered as with exits.
        With several processes all must call it.
        """
        matrices, images = sum(gather(self.matrices)), int(sum(gather(np.array(self.counted))))
        dense = matrices[:, 1].sum(axis=0)
        names, pixels = classes.names, dense[:-1].sum()
        miou = summarise(dense, names).miou
        return [
            {
                "layer": layer,
                "images": images,
                "pixels": ratio(by_dense[:-1].sum(), pixels),
                "accuracy": ratio(by_early.trace(), by_early[:-1].sum()),
                "dense_accuracy": ratio(by_dense.trace(), by_dense[:-1].sum()),
                "miou_change": summarise(dense - by_dense + by_early, names).miou - miou,
            }
            for layer, (by_early, by_dense) in zip([*layers, None], matrices, strict=True)
        ]


def lines(parts: Sequence[Mapping], images: int) -> dict[str, str]:
    """`ExitCosts.summary` for people, a line for each part; none where no image was counted.

    Says so where not all of the set's ``images`` were counted.
    """
    counted = parts[0]["images"] if parts else images
    some = f" of {counted} of {images} images" if counted < images else ""
    return {
        "stayed" if part["layer"] is None else f"left after layer {part['layer']}": (
            f"{percent(part['pixels'])} % of the pixels{some}, {percent(part['accuracy'])} % right "
            f"(densely {percent(part['dense_accuracy'])}), mIoU {100 * part['miou_change']:+.2f}"
        )
        for part in parts
        if not np.isnan(part["pixels"])
    }
