"""Exported programs, loaded again, answer like the model."""

import importlib

import jax
import numpy as np
from conftest import quick_compiles
from test_execute import CASES
from tiny_models import images, numbers

from jaxseg import labels
from jaxseg.models.network import network
from jaxseg.tools.export import exported


def test_exported_models_answer_like_the_model():
    config = importlib.import_module("configs.dtop_segvit_vitti_camvid").get_config()
    spec, arrays = CASES["share"], numbers(CASES["share"])
    pixels = np.clip(128 + 60 * images(2), 0, 255).astype(np.uint8)[:, :18, :27]
    normal = (pixels.astype(np.float32) - 127.5) / 127.5
    with quick_compiles():
        for each in (spec, spec.dense()):
            content = exported(each, arrays, config, (18, 27), 2).serialize()
            found, alive = jax.export.deserialize(content).call(pixels)
            answer = network(each).program()(arrays, normal)
            ways = [labels.axis(n, ((4 * n, s),)) for n, s in ((5, 18), (7, 27))]
            expected = labels.label_map(answer.scores, *ways)[:, :18, :27]
            np.testing.assert_array_equal(alive, answer.alive)
            assert found.shape == (2, 18, 27) and found.dtype == np.uint8
            assert (np.asarray(found) != np.asarray(expected)).mean() < 0.002  # near ties
