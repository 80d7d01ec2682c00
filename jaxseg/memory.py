"""How much memory predicting an image takes, and at what size that stays below a bound."""

import math

import jax

from jaxseg.errors import UserError
from jaxseg.inference import Predictor
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.windows import Size, bucket

_PIXEL = 10  # bytes: the image, its normalised copy, labels
_CHANNEL = 24  # floats per token and channel that are alive at once in a block
_STEP = 0.95  # by which sides shrink until they fit


def needed(spec: SegmenterSpec, predictor: Predictor, size: Size) -> float:
    """Bytes beyond weights and compiled programs, estimated, to predict an image of ``size``.

    Counts score maps of pixels, which windows, averaged views and SegViT's cascade need whole, and
    where the network takes an image at once its tokens and their attention.
    """
    how, slides = predictor.spec, predictor.spec.mode == "slide"
    largest = max(map(math.prod, predictor.compiled_for(size)[-1]))
    several = len(how.scales) > 1 or how.flip
    scores = (2 if several or _votes_on_pixels(spec) and not slides else int(slides)) * largest
    scores += several * math.prod(bucket(size)) + slides * 2 * math.prod(how.crop)
    network = 0.0 if slides else _network(spec, how.batch_size, largest / spec.vit.patch**2)
    return 4 * spec.classes * scores + network + _PIXEL * (largest + math.prod(size))


def fitting(spec: SegmenterSpec, predictor: Predictor, size: Size, limit: float) -> Size:
    """``size``, or the largest in steps of its sides for which `needed` is at most ``limit``.

    Raises UserError: not even a picture of a few pixels fits.
    """
    factor = 1.0
    while True:
        height, width = (max(1, round(side * factor)) for side in size)
        if needed(spec, predictor, (height, width)) <= limit:
            return height, width
        if max(height, width) == 1:
            least = needed(spec, predictor, (1, 1)) / 1e9
            raise UserError(
                f"predicting takes about {least:.2g} GB whatever the size of the picture: "
                f"use --memory_gb={math.ceil(10 * least) / 10:g} or more"
            )
        factor *= _STEP


def _network(spec: SegmenterSpec, batch: int, tokens: float) -> float:
    """Bytes of one block: attention scores (on a CPU of one head at a time) and activations."""
    heads = 1 if jax.default_backend() == "cpu" else 2 * batch * spec.vit.heads
    return 4 * (heads * tokens**2 + batch * tokens * spec.vit.width * _CHANNEL)


def _votes_on_pixels(spec: SegmenterSpec) -> bool:
    """Whether the last head's scores are at the size of the input, not on the token grid."""
    last = spec.heads[-1]
    if isinstance(last.sizes, ConvSpec):
        return last.sizes.up_scale**last.sizes.convs >= spec.vit.patch
    return isinstance(last.sizes, AtmSpec) and len(last.taps) > 1
