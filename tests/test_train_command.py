"""train.py and eval.py from end to end on drawn shapes: files, resume, SIGTERM."""

import importlib
import json

import numpy as np
import pytest

import train
from jaxseg import model_dir
from jaxseg.errors import UserError

evaluation = importlib.import_module("eval")


def smoke(**changes):
    config = importlib.import_module("configs.segvit_vitti_camvid").get_config("smoke")
    config.train.steps = 4
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(smoke(), str(folder), "test")
    return folder


def stop_after(count):
    calls = iter(range(1, 1000))
    return lambda processes: lambda: next(calls) >= count


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(whole, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        patch.setattr(train, "_watch_sigterm", stop_after(stop))
        with pytest.raises(UserError, match=f"SIGTERM after step {stop}.*resume=True"):
            train.train(smoke(), str(tmp_path), "test")
    train.train(smoke(resume=True), str(tmp_path), "test")
    ours, theirs = model_dir.load(str(tmp_path)), model_dir.load(str(whole))
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    steps = [
        [(line["step"], line.get("loss")) for line in map(json.loads, open_lines(folder))]
        for folder in (tmp_path, whole)
    ]
    assert steps[0] == steps[1]


def open_lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_second_run_in_a_workdir_needs_resume(whole):
    with pytest.raises(UserError, match="resume=True"):
        train.train(smoke(), str(whole), "test")


def test_damaged_checkpoints_are_not_taken_for_a_fresh_start(tmp_path):
    (tmp_path / "checkpoints" / "damaged_step_00000002").mkdir(parents=True)
    with pytest.raises(UserError, match="damaged checkpoints only"):
        train.train(smoke(resume=True), str(tmp_path), "test")


def test_batch_that_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=3 must be a multiple of 2: 2 devices x 1"):
        train.train(smoke(**{"train.batch_size": 3}), str(tmp_path), "test")


def test_evaluation_writes_what_it_promises(whole):
    results = evaluation.evaluate(smoke(), str(whole))
    stored = json.loads((whole / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert 0 <= stored["miou"] <= 1
    assert stored["gmacs_all_heads"] > stored["gmacs_backbone_and_final_head"] > 0
    assert stored["images"] == 2 and stored["images_per_second"] > 0
    assert len(stored["iou"]) == 12 and None in stored["iou"].values()  # two small scenes
    assert np.sum(stored["confusion"]) == 2 * 64 * 96
    for name in ("confusion.png", "report.html"):
        assert (whole / name).stat().st_size > 1000


def test_evaluation_without_a_config_uses_the_stored_one(whole):
    # The classes of another data set: a dense model has no page that tells them apart.
    with_config = evaluation.evaluate(smoke(**{"eval.foreground": ("nobody",)}), str(whole))
    without = evaluation.evaluate(None, str(whole))
    assert without["confusion"] == with_config["confusion"]


def test_weights_of_another_model_are_refused(whole):
    with pytest.raises(UserError, match="does not fit the model"):
        evaluation.evaluate(smoke(**{"model.head_width": 32}), str(whole))


def test_unfinished_workdir_is_named(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        evaluation.evaluate(None, str(tmp_path))
