"""Figures and pictures of early exits from an evaluation."""

import dataclasses

import numpy as np
import pytest
from test_execute import CASES, images, numbers

from jaxseg import exits, inference, programs
from jaxseg.data.classes import make_classes
from jaxseg.evaluation import Sample, evaluate
from jaxseg.inference import EvalSpec, Predictor
from jaxseg.models.macs import dense_macs, pruned_macs
from jaxseg.models.network import network

SPEC = CASES["top_k"]
HOW = EvalSpec(mode="whole", batch_size=2, mean=(128.0,) * 3, std=(60.0,) * 3)
CLASSES = make_classes([f"c{k}" for k in range(5)])


class Pictures:
    """Three images of one size, of different difficulty."""

    classes = CLASSES

    def __len__(self):
        return 3

    def __getitem__(self, i):
        image = np.clip(128 + 60 * images(3)[i], 0, 255).astype(np.uint8)
        label = (np.indices((20, 28)).sum(0) // 9 % 5).astype(np.uint8)
        return {"image": image, "label": label, "name": f"val/{i}"}


@pytest.fixture(scope="module")
def found():
    specs = {"model": SPEC, "dense": SPEC.dense()}
    predictors = {
        name: (Predictor(network(spec).program(), HOW), numbers(SPEC))
        for name, spec in specs.items()
    }
    return evaluate(predictors, Pictures(), pictures=2)


def test_figures(found):
    dense_spec = SPEC.dense()
    summary = exits.summary(SPEC, found["model"], dense_spec, found["dense"])
    by_hand = [pruned_macs(SPEC, (20, 28), a[0]).gmacs_all_heads for a in found["model"].alive]
    assert exits.mean_gmacs(SPEC, found["model"]) == pytest.approx(np.mean(by_hand))
    one_head = dense_macs(SPEC, (20, 28)).gmacs_backbone_and_final_head
    assert summary["dense_gmacs_per_image"] == pytest.approx(one_head)
    assert summary["exit_layers"] == [1, 2]
    kept = np.array([a[0, 1:] / 35 for a in found["model"].alive]).mean(axis=0)
    np.testing.assert_allclose(summary["kept_after_exit"], kept)
    assert summary["efficiency"] == pytest.approx(summary["speedup"] / summary["flops_ratio"])
    line = exits.line(summary | {"gmacs_per_image": 1.0})
    assert f"{100 * kept[0]:.0f} % of them after layer 1" in line


def test_programs_are_forgotten_before_they_take_all_mappings(found, monkeypatch):
    """A process that may have few: answers are the same, and compiled for again, not timed."""
    forgotten = []
    monkeypatch.setattr(
        inference, "make_room", lambda: forgotten.append(programs.make_room(limit=1))
    )
    predictor = Predictor(network(SPEC).program(), dataclasses.replace(HOW, batch_size=1))
    for turn in (1, 2):
        (again,), _, compiling = predictor.timed(numbers(SPEC), [Pictures()[2]["image"]])
        assert compiling > 0 and forgotten == [True] * turn
        assert predictor.program.compiled == 0
        sample = next(s for s in found["model"].samples if s.name == "val/2")
        np.testing.assert_array_equal(again.labels, sample.prediction)
    assert not programs.make_room()


def test_pruned_macs_of_all_tokens_are_dense_with_the_heads_that_look():
    alive = [35.0, 35.0, 35.0]
    whole = dense_macs(SPEC, (20, 28))
    assert pruned_macs(SPEC, (20, 28), alive).gmacs_all_heads == pytest.approx(
        whole.gmacs_all_heads
    )
    fewer = pruned_macs(SPEC, (20, 28), [35.0, 20.0, 10.0])
    assert fewer.gmacs_all_heads < whole.gmacs_all_heads
    half = dataclasses.replace(
        SPEC, heads=(SPEC.heads[0], dataclasses.replace(SPEC.heads[1], decide=None), SPEC.heads[2])
    )
    assert len(pruned_macs(half, (20, 28), [35.0, 20.0]).heads) == 2


@pytest.mark.parametrize("name", ["final", "mixed"])
def test_the_last_stage_is_the_prediction(name):
    net, image = network(CASES[name]), Pictures()[2]["image"]
    (found,) = Predictor(net.program(), HOW).predict(numbers(CASES[name]), [image])
    stages = exits.StageView(net, HOW)(numbers(CASES[name]), image)
    np.testing.assert_array_equal(stages.labels[-1], found.labels)
    np.testing.assert_array_equal(stages.left, found.left[0])


def test_a_final_label_is_shown_from_the_exit_on():
    """Also at the second exit, whose head says something else of tokens that left before."""
    spec = CASES["final"]
    run = exits.StageView(network(spec), HOW)._run
    (first, second, _), _, answer = run(numbers(spec), images(3))
    gone = np.asarray(answer.left) == 0
    assert gone.any() and len(spec.exits) == 2
    np.testing.assert_array_equal(np.asarray(second)[gone], np.asarray(first)[gone])


def test_speedup_and_efficiency_by_hand(found):
    """Dense: 2 images a second; pruned: 3. MACs are those of the tokens."""
    timed = {
        name: dataclasses.replace(result, seconds=(seconds,) * 3)
        for (name, result), seconds in zip(found.items(), (1 / 3, 1 / 2), strict=True)
    }
    summary = exits.summary(SPEC, timed["model"], SPEC.dense(), timed["dense"])
    assert summary["speedup"] == pytest.approx(1.5)
    assert summary["dense_images_per_second"] == pytest.approx(2.0)
    pruned = exits.mean_gmacs(SPEC, timed["model"])
    assert summary["flops_ratio"] == pytest.approx(summary["dense_gmacs_per_image"] / pruned)
    assert summary["efficiency"] == pytest.approx(1.5 / summary["flops_ratio"])


def test_stages_of_an_image(found):
    view, source = exits.StageView(network(SPEC), HOW), Pictures()
    stages = view(numbers(SPEC), source[1]["image"])
    assert len(stages.labels) == 3 and all(label.shape == (20, 28) for label in stages.labels)
    final = next(s for s in found["model"].samples if s.name == "val/2").prediction
    np.testing.assert_array_equal(view(numbers(SPEC), source[2]["image"]).labels[-1], final)
    alive = found["model"].alive[1][0]
    assert [len(c) for c in stages.confidences] == alive[:2].tolist()
    assert (stages.left >= 0).sum() == alive[0] - alive[2]
    left_first = stages.left == 0
    assert left_first.any() and len(stages.confidences[0]) == 35
    assert stages.confidences[0].reshape(5, 7)[left_first].min() > SPEC.heads[0].decide.threshold


def test_pictures_are_written(found, tmp_path):
    view = exits.StageView(network(SPEC), HOW)
    shapes_ = ((23, 30, 3), (23, 30), (23, 30), (1, 2))
    odd = Sample("val/odd", *(np.zeros(s, np.uint8) for s in shapes_))
    samples = [*found["model"].samples[:1], odd]
    folder = tmp_path / "exits"
    exits.write_pictures(folder, view, numbers(SPEC), samples, found["model"], CLASSES)
    names = {path.name for path in folder.iterdir()}
    assert names == {"val_0.png", "val_odd.png", "difficulty.png", "kept.png"}
