"""Merging, choosing and leaving early in one network: each works on what the others leave."""

import dataclasses

import jax
import numpy as np
import pytest
from test_merged import ORACLE, windows
from tiny_models import ATM, CLASS_TOKEN, CONV, VIT, few_programs, images, numbers, same

import train
from configs import step_vitti_camvid
from eval import evaluate
from jaxseg import build, model_dir
from jaxseg.execute import Masked, Packing
from jaxseg.methods import ats, dynamicvit, evit, evovit, svit
from jaxseg.methods.dtop import Exit
from jaxseg.models.macs import dense_macs, pruned_macs
from jaxseg.models.network import network
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec

EARLY = {"layers": (2, 3, 4), "keep": (0.7, 0.49, 0.343)}
METHODS = {
    "svit": svit.Skip(**EARLY),
    "svit, static": svit.Skip(**EARLY, selection="static"),
    "svit, no way back": svit.Skip((2, 4), (0.7, 0.3), preserve=False, reactivate=False),
    "dynamicvit": dynamicvit.Drop(**EARLY),
    "evit": evit.Fuse((2, 3, 4)),
    "evovit": evovit.Wait((2, 3, 4), (0.7, 0.6, 0.5)),
    "ats": ats.Sample(**EARLY),
}
EXITS = HeadSpec((0,), ATM, Exit(0.7, k=2)), HeadSpec((1,), ATM, Exit(0.75, k=1))
LAST = HeadSpec((3,), ATM)


def spec_of(method, *, exits=EXITS, merge=ORACLE, vit=VIT, last=LAST, **others) -> SparseSpec:
    return SparseSpec(vit, (*exits, last), merge=merge, method=METHODS[method], **others)


CASES = {
    "svit, merging and exits": spec_of("svit"),
    "dynamicvit, merging and exits": spec_of("dynamicvit"),
    "evit, merging and exits": spec_of("evit"),
    "evovit, merging and exits": spec_of("evovit"),
    "ats, merging and exits": spec_of("ats"),
    "svit, no way back": spec_of("svit, no way back", exits=()),
    "dynamicvit, exits, class token": spec_of("dynamicvit", merge=None, vit=CLASS_TOKEN),
    "evit, exits": spec_of("evit", merge=None),
    "evovit, final": spec_of("evovit", merge=None, final_at_exit=True),
    "svit, merging": spec_of("svit, static", exits=()),
    "evit, merging, class token": spec_of(
        "evit", exits=(), vit=CLASS_TOKEN, last=HeadSpec((3,), CONV)
    ),
    "dynamicvit, cascade": spec_of("dynamicvit", exits=(), last=HeadSpec((1, 2, 3), ATM)),
    "average": spec_of(
        "dynamicvit",
        exits=(
            HeadSpec((0,), CONV, Exit(0.6, "average")),
            HeadSpec((1,), ATM, Exit(0.7, "average_top_k", k=1)),
        ),
    ),
}


def all_numbers(spec: SparseSpec, *rates: float) -> dict:
    return numbers(spec) | (windows(*rates) if spec.merge else {})


@pytest.mark.parametrize("name", CASES)
def test_executors_agree_and_an_image_is_alone_in_its_batch(name):
    spec, batch = CASES[name], images(3)
    net, rates = network(spec), (0.0, 0.5, 1.0)
    arrays = all_numbers(spec, *rates)
    reference = net.program(Masked())(arrays, batch)
    alive = np.asarray(reference.alive)
    assert (alive[:, -1] < alive[:, 0]).all(), "nobody is chosen: shows nothing"
    assert len({tuple(row) for row in alive.tolist()}) > 1, "all images the same: shows nothing"
    if spec.exits:
        assert (np.asarray(reference.left) >= 0).any(), "nobody leaves"
    chain = few_programs(net)
    same(chain(arrays, batch), reference)
    if name not in ("svit, merging and exits", "evit, exits"):
        return
    own = {n: v[1:2] if n.startswith("policy") else v for n, v in arrays.items()}
    alone = chain(own, batch[1:2])
    np.testing.assert_array_equal(alone.alive[0], alive[1])
    np.testing.assert_allclose(alone.scores[0], reference.scores[1], atol=2e-5)


@pytest.mark.parametrize("name", ["svit, merging and exits", "evit, merging and exits"])
def test_the_switch_agrees(name):
    spec = CASES[name]
    net, arrays = network(spec), all_numbers(spec, 0.0, 0.5, 1.0)
    reference = net.program(Masked())(arrays, images(3))
    same(net.program(Packing(2, windows=2))(arrays, images(3)), reference)


@pytest.mark.parametrize("name", ["evit, exits"])
def test_warmup_compiles_all_that_is_needed(name):
    spec = CASES[name]
    program = few_programs(network(spec))
    arrays = all_numbers(spec, 0.5)
    assert program.warmup(arrays, images(1).shape) == program.compiled
    for batch in (images(1), images(1) + 1.0):
        before = program.compiled
        program(arrays, batch)
        assert program.compiled == before


@pytest.mark.parametrize("method", ["svit", "dynamicvit", "evit", "ats"])
def test_exits_that_nobody_takes_and_windows_that_nobody_accepts_change_nothing(method):
    shut = tuple(dataclasses.replace(head, decide=Exit(0.999999)) for head in EXITS)
    spec = spec_of(method, exits=shut)
    plain = spec_of(method, exits=tuple(HeadSpec(h.taps, ATM) for h in shut), merge=None)
    arrays, batch = numbers(spec), images(2)
    ours = network(spec).program(Masked())(arrays | windows(0.0, 0.0), batch)
    reference = network(plain).program(Masked())(arrays, batch)
    np.testing.assert_allclose(ours.scores, reference.scores, atol=1e-5)
    of_method = [i for i, stop in enumerate(spec.stops) if stop.head is None]
    chosen = np.asarray(ours.alive)[:, [i + 1 for i in of_method]]
    np.testing.assert_array_equal(chosen, np.asarray(reference.alive)[:, 1:])


def test_exits_that_nobody_takes_leave_gradients_alone():
    """A block lies between the cut and the exit, and another behind it."""
    method = svit.Skip((2,), (0.5,))
    heads = HeadSpec((2,), ATM), LAST
    plain = SparseSpec(VIT, heads, method=method)
    shut = dataclasses.replace(heads[0], decide=Exit(0.999999))
    spec = dataclasses.replace(plain, heads=(shut, LAST))
    arrays, labels = numbers(plain), np.zeros((2, 20, 28), np.uint8)

    def gradient(spec):
        def loss(params, stats):
            model = network(spec).bind(params, stats)
            terms = model.losses(images(2), labels, key=jax.random.key(0))
            return terms["decode.loss_mask"].value() + terms["decode.loss_ce"].value()

        return jax.jit(jax.grad(loss))(*network(spec).split(arrays))

    ours, theirs = gradient(spec), gradient(plain)
    gates = [name for name in ours if name.startswith("method")]
    assert max(abs(np.asarray(theirs[name])).max() for name in gates) > 1e-3
    for name in gates:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_everybody_chosen_is_step():
    """Gates that keep all: what is left is merging with exits, the network of STEP."""
    everybody = svit.Skip((2, 4), (1.0, 1.0), selection="static")
    spec = SparseSpec(VIT, (*EXITS, LAST), merge=ORACLE, method=everybody)
    step = SegmenterSpec(VIT, (*EXITS, LAST), merge=ORACLE)
    rates, batch = (0.2, 0.9), images(2)
    arrays = numbers(spec) | windows(*rates)
    ours = few_programs(network(spec))(arrays, batch)
    theirs = few_programs(network(step))(arrays, batch)
    np.testing.assert_array_equal(ours.left, theirs.left)
    np.testing.assert_array_equal(ours.window, theirs.window)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-5)
    ends = [i for i, stop in enumerate(spec.stops) if stop.head is not None]
    after = np.asarray(ours.alive)[:, [0, *(i + 1 for i in ends)]]
    np.testing.assert_array_equal(after, theirs.alive)


@pytest.mark.parametrize(
    "name", ["svit, merging and exits", "dynamicvit, merging and exits", "svit, no way back"]
)
def test_training_gives_finite_losses_and_gradients(name):
    spec = CASES[name]
    arrays, labels = all_numbers(spec, 0.0, 0.5, 1.0), np.zeros((3, 20, 28), np.uint8)

    def loss(params, stats):
        terms = network(spec).bind(params, stats).losses(images(3), labels, key=jax.random.key(0))
        return sum(term.value() for term in terms.values()), terms

    grads, terms = jax.jit(jax.grad(loss, has_aux=True))(*network(spec).split(arrays))
    assert "method.ratio" in terms
    for parameter, grad in grads.items():
        grad = np.asarray(grad)
        assert np.isfinite(grad).all(), parameter
        if parameter.startswith("method"):
            assert abs(grad).max() > 0, parameter


def test_training_and_inference_see_the_same_tokens():
    """Without randomness the heads say in training what they say at inference (masked)."""
    spec = CASES["evit, merging and exits"]
    net, arrays, batch = network(spec), all_numbers(spec, 0.0, 0.5, 1.0), images(3)
    answer = net.program(Masked())(arrays, batch)
    model = net.bind(*net.split(arrays))
    logits = jax.jit(lambda: net.bind(*net.split(arrays))(batch))()
    last = model.heads[-1].grid_scores(logits[-1], (20, 28))
    np.testing.assert_allclose(last, answer.scores, atol=2e-5)


def test_macs_count_the_policy_exits_and_choices():
    spec = CASES["dynamicvit, exits, class token"]
    size, full = (20, 28), 36
    parts = pruned_macs(spec, size, [full] * (len(spec.stops) + 1))
    dense = dense_macs(spec, size)
    whole = {**parts.backbone.parts}
    assert whole.pop("choices") > 0
    assert whole == dense.backbone.parts
    assert len(parts.heads) == 3
    fewer = pruned_macs(spec, size, [full, full, 20, 20, 10, 10])
    assert fewer.backbone.parts["mlp"] < parts.backbone.parts["mlp"]


def test_by_configuration_alone(tmp_path):
    """STEP's configuration with the name of a method that chooses: trained two steps, evaluated."""
    config = step_vitti_camvid.get_config("smoke")
    config.method.name = "dynamicvit"
    config.method.layers, config.method.keep = (2, 3), (0.6, 0.4)
    train.train(config, str(tmp_path), "test")
    stored = model_dir.load(str(tmp_path))
    spec = build.segmenter_spec(stored.config, len(stored.classes))
    assert isinstance(spec, SparseSpec) and spec.exits and spec.merge
    assert [stop.head is None for stop in spec.stops].count(True) == 2
    found = evaluate(None, str(tmp_path), str(tmp_path / "out"))
    assert len(found["kept_after_exit"]) == len(spec.stops)
    assert (tmp_path / "out" / "usage" / "index.html").exists()
    assert (tmp_path / "out" / "exits" / "difficulty.png").exists()
