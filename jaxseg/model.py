"""A trained model as one object: ``model = jaxseg.load("runs/mine"); model.predict(image)``."""

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxseg import build, model_dir
from jaxseg.data.classes import Classes
from jaxseg.inference import Predictor
from jaxseg.models.macs import gmacs_of
from jaxseg.models.segmenter import SegmenterSpec, network, shapes
from jaxseg.weights import check_same


class Outcome(NamedTuple):
    """What a model says about one image.

    labels: class per pixel. inputs: size of every input of the network (one, or a window each).
    left: per input, the exit at which each token left, -1 if at none. alive: tokens that each stage
    of each input worked on. gmacs: multiply-accumulates from those, in 1e9. seconds: from pixels to
    labels, without compiling.
    """

    labels: UInt8[np.ndarray, "H W"]
    inputs: tuple[tuple[int, int], ...]
    left: tuple[Int[np.ndarray, "r c"], ...]
    alive: Int[np.ndarray, "inputs stages"]
    gmacs: float
    seconds: float


@dataclass(frozen=True)
class Model:
    """Weights, classes and the way they are evaluated, as training stored them."""

    predictor: Predictor
    arrays: dict
    classes: Classes
    spec: SegmenterSpec

    def predict(self, image: UInt8[np.ndarray, "H W 3"]) -> Outcome:
        """Segments one RGB image of any size, twice where something had to be compiled.

        Raises ValueError: not uint8 [H, W, 3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"give uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        found, seconds, _ = self.predictor.timed(self.arrays, [image])
        gmacs = gmacs_of(self.spec, found[0].inputs, found[0].alive)
        labels, inputs, alive, left = found[0]
        return Outcome(labels, inputs, left, alive, gmacs, seconds)


def load(directory: str | os.PathLike, config=None) -> Model:
    """The model in the workdir of a finished training run.

    ``config``: a configuration to evaluate it with instead of the stored one, as for eval.py.
    Raises UserError: nothing there, damaged, or weights that do not fit the configuration.
    """
    stored = model_dir.load(str(directory))
    config = config or stored.config
    spec = build.segmenter_spec(config, len(stored.classes))
    wanted = {name: shape.shape for part in shapes(spec) for name, shape in part.items()}
    check_same(stored.arrays, wanted, f"{directory}/{model_dir.WEIGHTS}")
    config = config.copy_and_resolve_references()
    if config.eval.mode == "whole":
        config.eval.batch_size = 1  # images come one at a time
    program = network(spec).program(bfloat16=config.model.bfloat16)
    predictor = Predictor(program, build.eval_spec(config))
    return Model(predictor, program.prepare(stored.arrays), stored.classes, spec)
