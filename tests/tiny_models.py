"""Small networks and pictures that several tests share, and what it means that answers agree."""

import dataclasses
import functools

import numpy as np

from jaxseg.execute import Packing
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import Network, shapes
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.models.vit import ViTSpec
from jaxseg.programs import Program

GRID, PATCH = (5, 7), 4
VIT = ViTSpec(16, 4, 2, grid=GRID, patch=PATCH)
CLASS_TOKEN = dataclasses.replace(VIT, class_token=True, final_norm=True)
ATM, CONV = AtmSpec(5, 8, 2, layers=1), ConvSpec(classes=5, channels=8)


@functools.cache
def images(batch: int, size: tuple[int, int] = (20, 28)) -> np.ndarray:
    """Pictures of different difficulty: some flat, some of noise."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((batch, *size, 3), np.float32)
    return noise * np.linspace(0.1, 2.0, batch)[:, None, None, None].astype(np.float32)


def numbers(spec: SegmenterSpec) -> dict:
    """Arrays far enough from the first ones that tokens differ; without those of a policy."""
    rng = np.random.default_rng(0)
    params, stats = draw(*shapes(spec.dense()), seed=0)
    moved = {n: v + 0.4 * rng.standard_normal(v.shape, np.float32) for n, v in params.items()}
    return moved | stats


def few_programs(net: Network) -> Program:
    """What inference runs, with few capacities and window lengths to compile."""
    return dataclasses.replace(net.program(), executor=Packing(3, windows=2))


def same(ours, reference) -> None:
    """Two `jaxseg.execute.Answer`s: decisions exactly, scores up to rounding."""
    np.testing.assert_array_equal(ours.left, reference.left)
    np.testing.assert_array_equal(ours.alive, reference.alive)
    np.testing.assert_array_equal(ours.window, reference.window)
    np.testing.assert_allclose(ours.scores, reference.scores, atol=2e-5)
