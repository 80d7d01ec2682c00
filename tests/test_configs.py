"""Every file of configs/: complete at full size; two real steps of each smoke variant."""

import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import train
from jaxseg import build, model_dir, tasks
from jaxseg.execute import Masked
from jaxseg.models.network import network, shapes

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
CLASSES = {"camvid": 11, "msrc": 21, "own_data": 5, "imagenet": 1000}


@pytest.fixture(autouse=True)
def _forget_programs_of_a_configuration():
    """They would fill gigabytes; the same ones come back from disk."""
    yield
    jax.clear_caches()


def config_of(name: str, arg: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def class_count(name: str, config) -> int:
    known = [count for part, count in CLASSES.items() if part in name]
    return known[0] if known else build.class_count(config)


@pytest.mark.parametrize("name", NAMES)
def test_full_size(name):
    config = config_of(name)
    if config.task == "policy":
        return policy_at_full_size(config, class_count(name, config))
    task, classes = tasks.of(config), class_count(name, config)
    spec = task.spec(config, classes)
    params, stats = shapes(spec)
    build.optim_spec(config), build.train_spec(config)
    task.validator(config, network(spec), False)  # how it is evaluated
    size = task.recipe(config, classes).crop
    answer = jax.eval_shape(
        network(spec).program(Masked()),
        params | stats,
        jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
    )
    grid = tuple(side // spec.vit.patch for side in size)
    answered = {"cascade": size, "class": (1, 1)}.get(config.model.head, grid)
    assert answer.scores.shape == (1, *answered, spec.classes)


def policy_at_full_size(config, classes: int):
    spec = build.policy_spec(config, classes)
    params, stats = shapes(spec)
    build.optim_spec(config), build.train_spec(config), build.eval_spec(config)
    crop = build.recipe(config).crop
    bound = jax.eval_shape(
        lambda arrays, images: network(spec).bind(*network(spec).split(arrays))(images),
        params | stats,
        jax.ShapeDtypeStruct((1, *crop, 3), jnp.float32),
    )
    for side in spec.sides:
        assert bound[side].shape == (1, *(n // 16 // side for n in crop))
    assert set(build.merge_decision(config).sides) <= set(spec.sides)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_commands_and_figures(name):
    doc = sys.modules.get(f"configs.{name}", importlib.import_module(f"configs.{name}")).__doc__
    assert f"train.py --config=configs/{name}.py" in doc
    assert f"eval.py --config=configs/{name}.py" in doc
    if "ade20k" in name or "pascal" in name or "coco" in name:
        assert "Published:" in doc and "GMACs" in doc and "A100" in doc


def one_of_each(names: list[str]) -> list[str]:
    """The first of those whose smoke variants are one network, drop path apart, and one method,
    whatever its thresholds."""
    first: dict[str, str] = {}
    for name in names:
        config = config_of(name, "smoke").to_dict()
        config["model"].pop("drop_path")
        method = {n: config["method"][n] for n in ("name", "merge", "final_at_exit", "context")}
        if config["task"] == "classify":  # methods that choose tokens train as segmenters
            method = method["name"] == "dense"
        parts = [config["task"], config["model"], method, config["policy"]["trunk"]]
        first.setdefault(json.dumps(parts), name)
    return list(first.values())


@pytest.mark.parametrize("name", one_of_each(NAMES))
def test_smoke_variant_trains_two_steps(name, tmp_path):
    train.train(config_of(name, "smoke"), str(tmp_path), "test")
    stored = model_dir.load(str(tmp_path))
    assert stored.config.model.head == config_of(name).model.head
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3  # 2 steps, 1 validation


def test_unknown_argument_is_refused():
    with pytest.raises(train.UserError, match="'smok'"):
        config_of("quickstart", "smok")
