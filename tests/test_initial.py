"""First numbers: every parameter of every kind of head starts at its scale."""

import re
import zlib

import numpy as np
import pytest

from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import ViTSpec

VIT = ViTSpec(48, 6, 2, grid=(6, 7), patch=4, class_token=True, final_norm=True)
ATM = AtmSpec(classes=9, width=40, heads=2, layers=2)
CONV = ConvSpec(classes=9, channels=30, convs=2, kernel=3)
AUX_ATM, AUX_CONV, CASCADE, LAST = (
    HeadSpec((0,), ATM),
    HeadSpec((1,), CONV),
    HeadSpec((2, 3, 4), ATM),
    HeadSpec((5,), ATM),
)
SPEC = SegmenterSpec(VIT, (AUX_ATM, AUX_CONV, CASCADE, LAST))

# The first pattern that matches says the distribution: (kind, standard deviation or value).
RULES = [
    (r".*\.scale", ("constant", 1.0)),
    (r".*\.queries", ("normal", 1.0)),
    (r"vit\.patch_embed\.kernel", ("normal", (2 / 48) ** 0.5)),  # kaiming of 4 x 4 x 3 inputs
    (r"heads\.1\.convs\.\d\.kernel", ("normal", (2 / (9 * 30)) ** 0.5)),  # 3 x 3 x 30 outputs
    (r"heads\.\d\.classify\.kernel", ("normal", 0.01)),
    (r"vit\.blocks\.\d\.mlp\.fc.\.bias", ("normal", 1e-6)),
    # torch's default in an auxiliary ATM head: uniform in +-1 / sqrt(inputs), also the biases
    (r"heads\.[02]\..*\.layers\.\d\.norm\d\.bias", ("constant", 0.0)),
    (r"heads\.[02]\..*\.layers\.\d\.fc2\..*", ("uniform", 160**-0.5)),
    (r"heads\.[02]\.(decoder.*\.layers|class_embed)\..*", ("uniform", 40**-0.5)),
    (r".*\.bias", ("constant", 0.0)),
    (r".*\.kernel|vit\.pos_embed|vit\.class_token", ("normal", 0.02)),
]


def rule_of(name):
    return next(rule for pattern, rule in RULES if re.fullmatch(pattern, name))


@pytest.fixture(scope="module")
def drawn():
    return draw(*shapes(SPEC), seed=0)


def test_every_parameter_starts_at_its_scale(drawn):
    wanted, _ = shapes(SPEC)
    params, _ = drawn
    assert set(params) == set(wanted)
    for name, value in params.items():
        kind, size = rule_of(name)
        assert value.dtype == np.float32 and value.shape == wanted[name].shape, name
        if kind == "constant":
            assert (value == size).all(), name
            continue
        sigma = size if kind == "normal" else size / 3**0.5
        # Standard errors of the spread and of the mean; six of them on either side.
        assert abs(value.std() / sigma - 1) < 6 * (2 * value.size) ** -0.5 + 1e-6, name
        assert abs(value.mean()) < 6 * sigma * value.size**-0.5, name
        if kind == "uniform":
            assert abs(value).max() <= size, name
        elif value.size > 2000:
            assert abs(value).max() > 2.5 * sigma, name  # no uniform, nothing cut off


def test_the_rules_of_this_test_are_all_used(drawn):
    used = {rule_of(name) for name in drawn[0]}
    assert used == {rule for _, rule in RULES}


def test_running_statistics_start_at_zero_and_one(drawn):
    _, stats = drawn
    assert set(stats) == {f"heads.1.bns.{i}.{kind}" for i in range(2) for kind in ("mean", "var")}
    for name, value in stats.items():
        assert (value == (1.0 if name.endswith("var") else 0.0)).all() and value.dtype == np.float32


def test_same_seed_same_numbers(drawn):
    again, _ = draw(*shapes(SPEC), seed=0)
    other, _ = draw(*shapes(SPEC), seed=1)
    for name, value in drawn[0].items():
        np.testing.assert_array_equal(value, again[name])
        if rule_of(name)[0] != "constant":
            assert (value != other[name]).any(), name


def test_the_numbers_are_those_of_the_first_release(drawn):
    """A seed in a paper must mean the same numbers in every version."""
    value = drawn[0]["vit.blocks.0.attn.qkv.kernel"]
    rng = np.random.default_rng([0, zlib.crc32(b"vit.blocks.0.attn.qkv.kernel")])
    np.testing.assert_array_equal(value, rng.standard_normal(value.shape, np.float32) * 0.02)


def test_no_two_arrays_are_copies(drawn):
    free = [value for name, value in drawn[0].items() if rule_of(name)[0] != "constant"]
    assert len({value.tobytes() for value in free}) == len(free)


def test_an_array_depends_on_its_name_alone(drawn):
    """Taking heads away leaves the backbone and the first head as they were."""
    fewer, _ = draw(*shapes(SegmenterSpec(VIT, (AUX_ATM, LAST))), seed=0)
    for name, value in fewer.items():
        if name.startswith(("vit.", "heads.0.")):
            np.testing.assert_array_equal(value, drawn[0][name])


def test_a_single_head_is_not_auxiliary():
    params, _ = draw(*shapes(SegmenterSpec(VIT, (LAST,))), seed=0)
    kernel = params["heads.0.decoder.layers.0.fc1.kernel"]
    assert abs(kernel.std() - 0.02) < 0.002
    assert (params["heads.0.decoder.layers.0.fc1.bias"] == 0).all()


def test_numpy_arrays_serve_as_shapes(drawn):
    again, _ = draw(*drawn, seed=0)
    np.testing.assert_array_equal(again["vit.pos_embed"], drawn[0]["vit.pos_embed"])
