"""Methods that choose tokens before or inside blocks: masked = packed, and more that must hold."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import ATM, CLASS_TOKEN, CONV, VIT, few_programs, images, numbers, same

from jaxseg.execute import Masked, Packing
from jaxseg.methods import ats, dynamicvit, evit, evovit, svit
from jaxseg.models.macs import dense_macs, pruned_macs
from jaxseg.models.mask_transformer import MaskSpec
from jaxseg.models.network import network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec

ONE = (HeadSpec((1,), CONV), HeadSpec((3,), ATM))
NAIVE = (HeadSpec((3,), CONV),)
PUP = (HeadSpec((3,), dataclasses.replace(CONV, kernel=3, up_scale=2)),)  # sees neighbours
MASKS = (HeadSpec((3,), MaskSpec(5, 8, 2, layers=1)),)
CASCADE = (HeadSpec((1, 2, 3), ATM),)
EARLY = {"layers": (2, 3, 4), "keep": (0.7, 0.49, 0.343)}
CASES = {
    "svit": SparseSpec(VIT, ONE, method=svit.Skip(**EARLY)),
    "svit, sampled": SparseSpec(
        CLASS_TOKEN, NAIVE, method=svit.Skip(**EARLY, selection="sampled", gate="complex")
    ),
    "svit, static": SparseSpec(VIT, PUP, method=svit.Skip(**EARLY, selection="static")),
    "svit, no way back": SparseSpec(
        VIT, NAIVE, method=svit.Skip((2, 4), (0.7, 0.3), preserve=False, reactivate=False)
    ),
    "dynamicvit": SparseSpec(VIT, NAIVE, method=dynamicvit.Drop(**EARLY)),
    "dynamicvit, remove": SparseSpec(
        CLASS_TOKEN, MASKS, method=dynamicvit.Drop((1, 3), (0.7, 0.4), preserve=False)
    ),
    "evit": SparseSpec(VIT, NAIVE, method=evit.Fuse((2, 3, 4))),
    "evit, remove": SparseSpec(
        CLASS_TOKEN, NAIVE, method=evit.Fuse((1, 3), (0.7, 0.7), preserve=False, fuse=False)
    ),
    "ats": SparseSpec(VIT, NAIVE, method=ats.Sample(**EARLY)),
    "ats, remove": SparseSpec(
        CLASS_TOKEN, CASCADE, method=ats.Sample((2, 4), (1.0, 0.5), preserve=False)
    ),
    "evovit": SparseSpec(VIT, CASCADE, method=evovit.Wait((2, 3, 4), (0.5,) * 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_executors_agree_and_an_image_is_alone_in_its_batch(name):
    net, arrays, batch = network(CASES[name]), numbers(CASES[name]), images(3)
    reference, ours = net.program(Masked())(arrays, batch), few_programs(net)
    alive = np.asarray(reference.alive)
    assert (alive[:, -1] < alive[:, 0]).all(), "the case shows nothing"
    same(ours(arrays, batch), reference)
    if name not in ("svit", "svit, sampled", "ats", "evit"):
        return
    alone = ours(arrays, batch[1:2])
    np.testing.assert_array_equal(alone.alive[0], alive[1])
    np.testing.assert_allclose(alone.scores[0], reference.scores[1], atol=2e-5)


@pytest.mark.parametrize("name", ["svit", "ats"])
def test_the_switch_agrees(name):
    net, arrays = network(CASES[name]), numbers(CASES[name])
    reference = net.program(Masked())(arrays, images(3))
    same(net.program(Packing(2, windows=2))(arrays, images(3)), reference)


@pytest.mark.parametrize("name", ["svit, static", "dynamicvit", "evit", "evovit"])
def test_one_program_where_counts_are_known(name):
    program = network(CASES[name]).program()
    for batch in (images(3), images(3) + 0.5):
        program(numbers(CASES[name]), batch)
    assert program.compiled == 1


@pytest.mark.parametrize("name", ["svit", "dynamicvit", "evit", "ats", "evovit"])
def test_training_forward_gives_finite_losses_and_gradients_to_all(name):
    spec = CASES[name]
    arrays, labels = numbers(spec), np.zeros((3, 20, 28), np.uint8)

    def loss(params, stats):
        terms = network(spec).bind(params, stats).losses(images(3), labels, key=jax.random.key(0))
        return sum(term.value() for term in terms.values()), terms

    grads, terms = jax.jit(jax.grad(loss, has_aux=True))(*network(spec).split(arrays))
    assert ("method.ratio" in terms) == name.startswith(("svit", "dynamicvit"))
    for parameter, grad in grads.items():
        grad = np.asarray(grad)
        assert np.isfinite(grad).all(), parameter
        if parameter.startswith("method"):
            assert abs(grad).max() > 0, parameter


@pytest.mark.parametrize("name", ["evit", "evit, remove", "evovit"])
def test_training_packs_where_counts_are_known_and_nothing_else_changes(name):
    spec = CASES[name]
    depends = type("Depends", (type(spec.method),), {"fixed_counts": False})
    masked = dataclasses.replace(spec, method=depends(**vars(spec.method)))
    labels = np.random.default_rng(0).integers(0, 5, (3, 20, 28), np.uint8)
    rows = {True: [], False: []}

    def gradients(spec):
        def loss(params, stats):
            model = network(spec).bind(params, stats)
            halves = model._halves
            model._halves = lambda carry, *given: (
                rows[spec.fixed_counts].append(carry.x.shape[1]) or halves(carry, *given)
            )
            terms = model.losses(images(3), labels, key=jax.random.key(0))
            return sum(term.value() for term in terms.values())

        return jax.jit(jax.value_and_grad(loss))(*network(spec).split(numbers(spec)))

    (ours, packed), (reference, hidden) = gradients(spec), gradients(masked)
    assert max(rows[True][1:]) <= rows[True][0] and rows[True][-1] < 0.6 * rows[False][-1]
    assert float(ours) == pytest.approx(float(reference), rel=1e-5)
    for parameter, gradient in hidden.items():
        np.testing.assert_allclose(packed[parameter], gradient, 1e-3, 1e-6, err_msg=parameter)


def test_everybody_chosen_is_dense():
    everybody = {"layers": (2, 4), "keep": (1.0, 1.0)}
    for method in (
        svit.Skip(**everybody, selection="static"),
        dynamicvit.Drop(**everybody),
        evit.Fuse(**everybody, fuse=False),
        evovit.Wait((2, 3), (1.0, 1.0)),
    ):
        spec = SparseSpec(VIT, NAIVE, method=method)
        arrays = numbers(spec)
        dense = network(spec.dense()).program()(arrays, images(2))
        for executor in (Masked(), None):
            ours = network(spec).program(executor)(arrays, images(2))
            np.testing.assert_allclose(ours.scores, dense.scores, atol=1e-5)
        if not spec.artificial:  # then it is the network without a method
            plain = SegmenterSpec(VIT, NAIVE)
            own = {name: arrays[name] for part in shapes(plain) for name in part}
            np.testing.assert_array_equal(
                network(plain).program()(own, images(2)).scores, dense.scores
            )


def test_nobody_chosen():
    """Gates that shut: the heads read what the first block has left."""
    spec = SparseSpec(VIT, NAIVE, method=svit.Skip((2, 3), (0.5, 0.5)))
    arrays = numbers(spec)
    for i in range(2):
        arrays[f"method.gates.{i}.fc2.kernel"] = np.zeros((4, 2), np.float32)
        arrays[f"method.gates.{i}.fc2.bias"] = np.array([-40.0, 40.0], np.float32)
    reference = network(spec).program(Masked())(arrays, images(2))
    assert reference.alive.tolist() == [[35, 0, 0]] * 2
    same(network(spec).program()(arrays, images(2)), reference)
    plain = SegmenterSpec(VIT, (HeadSpec((0,), CONV),))
    own = {name: arrays[name] for part in shapes(plain) for name in part}
    first = network(plain).program()(own, images(2))
    np.testing.assert_allclose(reference.scores, first.scores, atol=1e-5)


@pytest.mark.parametrize("name", ["svit", "dynamicvit", "evit", "ats", "evovit"])
def test_one_patch(name):
    spec = CASES[name]
    arrays, tiny = numbers(spec), images(2, (4, 4))
    reference = network(spec).program(Masked())(arrays, tiny)
    assert np.isfinite(reference.scores).all()
    same(network(spec).program()(arrays, tiny), reference)


def test_who_waits_is_seen_by_nobody():
    """Features of slots that wait do not matter to those who are worked on."""
    spec = SparseSpec(VIT, NAIVE, method=dynamicvit.Drop((2,), (0.5,)))
    net, arrays = network(spec), numbers(spec)

    @jax.jit
    def run(arrays):
        model = net.bind(*net.split(arrays))
        carry, choice = model.decide(model.begin(images(2)), 0)
        carry = Masked().pick(carry, choice)
        waits = ~carry.inside[..., None]
        poisoned = dataclasses.replace(carry, x=jax.numpy.where(waits, 1e4, carry.x))
        return [model.finish(c) for c in (carry, poisoned)]

    np.testing.assert_allclose(*run(arrays), atol=1e-6)


def test_macs_count_halves_and_choices():
    spec = SparseSpec(VIT, NAIVE, method=evit.Fuse((2,), (0.5,)))
    size, width = (20, 28), VIT.width
    alive = [36, 1 + 18 + 1]
    parts = pruned_macs(spec, size, alive).backbone.parts
    assert parts["attention"] == 2 * width * (2 * 36**2 + 2 * 20**2)  # layers 1, 2; 3, 4
    assert parts["mlp"] == 8 * width**2 * (36 + 3 * 20)
    assert parts["choices"] == width * (36 + 16)
    plain = dense_macs(SegmenterSpec(dataclasses.replace(VIT, class_token=True), NAIVE), size)
    assert dense_macs(spec, size).gmacs_all_heads == pytest.approx(plain.gmacs_all_heads)
    assert pruned_macs(spec.dense(), size, [36]) == dense_macs(spec, size)
