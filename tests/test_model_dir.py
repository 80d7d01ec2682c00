"""A model folder from anywhere: what is in it fits, or one line says what does not."""

import importlib
import json

import numpy as np
import pytest
import safetensors.numpy

import jaxseg
from jaxseg import build, model_dir, resume
from jaxseg import config as configuration
from jaxseg.data.classes import make_classes
from jaxseg.errors import UserError
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes


@pytest.fixture
def folder(tmp_path):
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    spec = build.segmenter_spec(config, 2)
    classes = make_classes(["sky", "traffic light"])
    model_dir.save(tmp_path, *draw(*shapes(spec), 0), config, classes)
    return tmp_path


def change(folder, value, *path):
    """Set one value of config.json; ``value`` is JSON."""
    stored = json.loads((folder / "config.json").read_text())
    at = stored
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "here"
    (folder / "config.json").write_text(json.dumps(stored).replace('"here"', value))


def refusal(folder) -> str:
    with pytest.raises(UserError) as raised:
        jaxseg.load(folder)
    message = str(raised.value)
    assert message.isprintable() and len(message) <= 2000
    return message


def test_what_was_saved_is_loaded(folder):
    assert jaxseg.load(folder).classes.names == ("sky", "traffic light")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "value, path, message",
    [
        ('["a\\u001b[31m", "b"]', ("classes", "names"), "name cannot be shown"),
        ('["a\\ud800", "b"]', ("classes", "names"), "name cannot be shown"),
        ('["", "b"]', ("classes", "names"), "name cannot be shown"),
        (f'["{"x" * 10**6}", "b"]', ("classes", "names"), "name cannot be shown"),
        ("[]", ("classes",), "damaged (TypeError"),
        ('{"names": [], "colours": []}', ("classes",), "damaged (ValueError: no class"),
        ("[[0, 0, 256], [0, 0, 0]]", ("classes", "colours"), "beyond 0 to 255"),
        ("[[0, 0, 1e999], [0, 0, 0]]", ("classes", "colours"), "damaged (OverflowError"),
        ("[[0, 0, 0]]", ("classes", "colours"), "2 class names but 1 colours"),
        (DEEP, ("config",), "damaged (RecursionError"),
        (DEEP, ("config", "model", "taps"), "damaged (RecursionError"),
        ("[" * 900 + "]" * 900, ("config", "model", "taps"), "config.json: "),
        ("null", ("config",), "config must be an object, not None"),
        ('{"a\\u001b[2J": 1}', ("config", "model"), "unknown field config.model.a\\x1b[2J"),
        ('"x"', ("config", "seed"), "config.seed must be a int, not 'x'"),
        ("true", ("config", "seed"), "config.seed must be a int, not True"),
        ("9" * 400, ("config", "optim", "lr"), "config.optim.lr must be a float, not 999"),
        ('"x"', ("config", "model", "taps"), "must be a tuple like (5, 7, 11), not 'x'"),
        ('[0, "1"]', ("config", "model", "taps"), "must be a tuple like (5, 7, 11), not [0, '1']"),
        ("[0, [1]]", ("config", "model", "taps"), "must be a tuple like (5, 7, 11), not [0, [1]]"),
        ("[0.5]", ("config", "method", "layers"), "must be a tuple like (0,), not [0.5]"),
        (
            '[["^vit"]]',
            ("config", "optim", "lr_multipliers"),
            "must be a tuple like (('^heads', 10",
        ),
        ("[8]", ("config", "data", "crop"), "data.crop=(8,): give two positive whole numbers"),
        ("[8, 1000000000]", ("config", "data", "crop"), "give two positive whole numbers, up to"),
        ("[]", ("config", "eval", "crop"), "eval.crop=(): give two positive whole numbers"),
        ("[8]", ("config", "eval", "stride"), "eval.stride=(8,): give two positive whole numbers"),
        ("0", ("config", "model", "patch"), "model.patch=0: give a whole number from 1 to 1024"),
        ("1000000000", ("config", "model", "head_layers"), "head_layers=1000000000: give a whole"),
        ("0", ("config", "model", "head_heads"), "head_heads=0: give a whole number from 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_config_is_refused(folder, value, path, message):
    change(folder, value, *path)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{}", b"[]", b"{}", b"7", b'{"classes": {}'])
def test_another_file_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    assert f"{folder}/config.json: damaged (" in refusal(folder)


def test_whole_numbers_may_stand_for_floats(folder):
    change(folder, "[1, 2]", "config", "data", "ratio")
    change(folder, "1", "config", "optim", "lr")
    config = jaxseg.load(folder).config
    assert config.data.ratio == (1.0, 2.0) and type(config.data.ratio[0]) is float
    assert type(config.optim.lr) is float


def test_arrays_of_whole_numbers_are_no_weights(folder):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    name = min(arrays)
    arrays[name] = arrays[name].view(np.int32)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    assert f"1 arrays are no floats, the first is {name} (int32)" in refusal(folder)


def test_what_tuples_hold_that_are_empty_by_default_is_known():
    fields = resume._flat(configuration.defaults().to_dict())
    empty = {name.split(".")[-1] for name, value in fields if value == ()}
    assert empty <= configuration._PARTS.keys()
