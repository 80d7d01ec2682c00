"""A trained model as one object: ``model = jaxseg.load("runs/mine"); model.predict(image)``."""

import os
import pathlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxseg import build, foreign, model_arrays, model_dir, zoo
from jaxseg.config import ConfigDict
from jaxseg.convert.files import read_arrays
from jaxseg.data.classes import Classes
from jaxseg.errors import UserError
from jaxseg.inference import Predictor
from jaxseg.models.macs import gmacs_of
from jaxseg.models.network import network
from jaxseg.models.segmenter import SegmenterSpec


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
    """Weights, classes and the way they are evaluated.

    ``arrays``: the weights on the device, as the network computes with them. ``stored``: as they
    were read, on the host, with the configuration that is followed.
    """

    predictor: Predictor
    arrays: dict
    classes: Classes
    spec: SegmenterSpec
    stored: model_dir.StoredModel

    @property
    def config(self) -> ConfigDict:
        """A copy of the configuration that is followed: to change and to hand to `configured`."""
        return self.stored.config.copy_and_resolve_references()

    def configured(self, config: ConfigDict) -> "Model":
        """The same weights by another configuration, e.g. other exits; no file is read again.

        Raises UserError: weights that do not fit it.
        """
        return _by(replace(self.stored, config=config))

    def predict(self, image: UInt8[np.ndarray, "H W 3"]) -> Outcome:
        """Segments one RGB image of any size, twice where something had to be compiled.

        Raises ValueError: not uint8 [H, W, 3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"give uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        found, seconds, _ = self.predictor.timed(self.arrays, [image])
        gmacs = gmacs_of(self.spec, found[0].inputs, found[0].alive)
        labels, inputs, alive, left, _ = found[0]
        return Outcome(labels, inputs, left, alive, gmacs, seconds)

    def warmup(self, size: tuple[int, int]) -> int:
        """Compiles all that images of ``size`` (height, width) can need; returns how many programs.

        Without it `predict` compiles when it first meets a size, or as many tokens as that leave.
        """
        found = self.predict(np.zeros((*size, 3), np.uint8))
        program, batch = self.predictor.program, self.predictor.spec.batch_size
        return sum(program.warmup(self.arrays, (batch, *given, 3)) for given in set(found.inputs))


def load(source: str | os.PathLike, config=None) -> Model:
    """The model in the workdir of a finished training run, in another program's checkpoint file, or
    of a public checkpoint by its name (docs/checkpoints.md), which is downloaded once.

    ``config``: a configuration to evaluate it with instead of the stored one, as for eval.py.
    Raises UserError: nothing there, damaged, or weights that do not fit the configuration.
    """
    stored = _stored(source, config)
    return _by(stored if config is None else replace(stored, config=config))


def _by(stored: model_dir.StoredModel) -> Model:
    config = stored.config.copy_and_resolve_references()
    model_arrays.no_oracle(config)
    spec = build.segmenter_spec(config, len(stored.classes))
    arrays = model_arrays.arrays_for(stored, config, spec)
    if config.eval.mode == "whole":
        config.eval.batch_size = 1  # images come one at a time
    program = network(spec).program(bfloat16=config.model.bfloat16)
    predictor = Predictor(program, build.eval_spec(config))
    return Model(predictor, program.prepare(arrays), stored.classes, spec, stored)


def _stored(source: str | os.PathLike, config) -> model_dir.StoredModel:
    path = pathlib.Path(source)
    if path.is_dir():
        return model_dir.load(str(path))
    if not path.is_file():
        if path.parent != pathlib.Path():
            raise UserError(f"{source}: no such folder or file; give the workdir of a training run")
        path = zoo.get(str(source))
    found = foreign.model_of(read_arrays(path), config, str(path))
    if found.config is None:
        raise UserError(
            f"{source}: {found.kind.title} alone has no head to predict with; train from it with "
            f"--config.init_from"
        )
    return model_dir.StoredModel(found.arrays, found.config, found.classes, str(path))
