"""Masked = packed with host capacities, for every rule; = packed with a switch, for some."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import ATM, CLASS_TOKEN, CONV, VIT, few_programs, images, numbers, same

from jaxseg import fates
from jaxseg.execute import Masked, Packing, step
from jaxseg.methods.dtop import Exit
from jaxseg.models import attention
from jaxseg.models.mask_transformer import MaskSpec
from jaxseg.models.network import network
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec

MASK = MaskSpec(5, 8, 2)


def spec_of(*exits, vit=VIT, sizes=(ATM, ATM, ATM), final_at_exit=False) -> SegmenterSpec:
    """Heads after blocks 0, 1 and 3; ``exits`` are the decisions of the first two."""
    heads = zip((0, 1, 3), sizes, (*exits, None), strict=True)
    return SegmenterSpec(vit, tuple(HeadSpec((tap,), *rest) for tap, *rest in heads), final_at_exit)


CASES = {
    "top_k": spec_of(Exit(0.7, k=2), Exit(0.75, k=1)),
    "remove": spec_of(Exit(0.7, "remove"), Exit(0.75, "remove")),
    "average": spec_of(Exit(0.7, "average"), Exit(0.75, "average_top_k", k=1)),
    "share": spec_of(Exit(0.9, "remove", share=0.35), Exit(0.9, "remove", share=0.35)),
    "final": spec_of(Exit(0.7, k=1), Exit(0.7, k=2), final_at_exit=True),
    "class token": spec_of(Exit(0.7, k=1), None, vit=CLASS_TOKEN),
    "setr": spec_of(Exit(0.5, k=1), Exit(0.6, k=1), vit=CLASS_TOKEN, sizes=(CONV,) * 3),
    "mixed": spec_of(Exit(0.6, k=1), Exit(0.9, k=1), sizes=(CONV, CONV, ATM)),
    "mask": spec_of(Exit(0.6, k=1), Exit(0.56, k=1), vit=CLASS_TOKEN, sizes=(CONV, MASK, MASK)),
    "handed on": spec_of(Exit(0.75, k=1), None, sizes=(ATM, ATM, CONV)),
    "mixed, final": spec_of(None, Exit(0.65, k=1), sizes=(ATM, ATM, CONV), final_at_exit=True),
}


@pytest.mark.parametrize("name", CASES)
def test_executors_agree_and_an_image_is_alone_in_its_batch(name):
    net, arrays, batch = network(CASES[name]), numbers(CASES[name]), images(3)
    chain = net.program() if name == "top_k" else few_programs(net)
    reference = net.program(Masked())(arrays, batch)
    left = np.asarray(reference.left)
    assert all((left == number).any() for number in (-1, *range(len(CASES[name].exits))))
    same(chain(arrays, batch), reference)
    for i in range(3) if name == "top_k" else (1,):
        alone = chain(arrays, batch[i : i + 1])
        np.testing.assert_array_equal(alone.left[0], left[i])
        np.testing.assert_allclose(alone.scores[0], reference.scores[i], atol=2e-5)


@pytest.mark.parametrize("name", ["top_k", "average", "final", "setr"])
def test_the_switch_agrees(name):
    net, arrays = network(CASES[name]), numbers(CASES[name])
    reference = net.program(Masked())(arrays, images(3))
    same(net.program(Packing(2, windows=2))(arrays, images(3)), reference)


@pytest.mark.parametrize("name", ["top_k", "average", "mixed", "handed on", "setr"])
def test_training_sees_what_inference_answers(name):
    """The last head's logits of the training forward give the scores of inference."""
    net, arrays = network(CASES[name]), numbers(CASES[name])

    @jax.jit
    def trained(arrays):
        model = net.bind(*net.split(arrays))
        return model.heads[-1].grid_scores(model(images(3))[-1], (20, 28))

    answer = net.program(Masked())(arrays, images(3))
    np.testing.assert_allclose(trained(arrays), answer.scores, atol=2e-5)


def test_a_mean_of_many_tokens_in_bfloat16():
    """800 leaving slots of one class: a count in bfloat16 would stop at 256."""
    rows = jax.numpy.full((800, 2), 2.0, jax.numpy.bfloat16)
    mean = fates._averaged(rows, jax.numpy.zeros(800, int))
    np.testing.assert_allclose(mean[0].astype(np.float32), 2.0, rtol=0.01)


def test_packed_bfloat16_is_close_to_float32():
    net, arrays = network(CASES["share"]), numbers(CASES["share"])
    half = net.program(bfloat16=True)
    ours = half(half.prepare(arrays), images(3))
    exact = net.program()(arrays, images(3))
    np.testing.assert_array_equal(ours.alive, exact.alive)
    assert np.median(abs(np.asarray(ours.scores) - np.asarray(exact.scores))) < 0.02


def test_padding_packed_rows_agrees(monkeypatch):
    """The form of attention that accelerators use, on the CPU."""
    net, arrays = network(CASES["top_k"]), numbers(CASES["top_k"])
    reference = net.program(Masked())(arrays, images(3))
    monkeypatch.setattr(attention, "_packed", attention._padded)
    same(net.program()(arrays, images(3)), reference)


def test_all_tokens_of_an_image_may_leave():
    spec = spec_of(Exit(0.0, "remove"), None)
    net, arrays = network(spec), numbers(spec)
    reference = net.program(Masked())(arrays, images(2))
    assert reference.alive.tolist() == [[35, 0], [35, 0]] and np.isfinite(reference.scores).all()
    same(net.program()(arrays, images(2)), reference)


def test_nobody_leaves_is_dense():
    """Above a threshold that nothing reaches, the scores are those without exits."""
    spec = spec_of(Exit(0.999999, k=5), Exit(0.999999, k=5))
    arrays = numbers(spec)
    dense = network(spec.dense()).program()(arrays, images(2))
    for executor in (Masked(), None):
        ours = network(spec).program(executor)(arrays, images(2))
        assert (np.asarray(ours.left) == -1).all()
        np.testing.assert_allclose(ours.scores, dense.scores, atol=2e-6)


def test_one_program_per_stage_and_capacity():
    spec = CASES["share"]
    chain, arrays = network(spec).program(), numbers(spec)
    chain = dataclasses.replace(chain, executor=Packing(4))
    for _ in range(2):
        chain(arrays, images(3))
        assert chain.compiled == 3  # the same shares leave: one capacity per stage
    count = chain.warmup(arrays, images(3).shape)
    assert count == chain.compiled == 1 + 2 * len(Packing(4).capacities(3 * 35))
    chain(arrays, images(3))
    assert chain.compiled == count


def test_dead_tokens_are_seen_by_nobody():
    """Features of slots that have left do not matter."""
    spec = CASES["top_k"]
    net, arrays = network(spec), numbers(spec)

    @jax.jit
    def run(arrays):
        model = net.bind(*net.split(arrays))
        carry = model.begin(images(3))
        carry = step(model, Masked(), 0, carry)
        dead = ~carry.layout.valid
        poisoned = dataclasses.replace(carry, x=jax.numpy.where(dead[..., None], 1e4, carry.x))
        return [model.finish(step(model, Masked(), 1, c)) for c in (carry, poisoned)]

    clean, poisoned = run(arrays)
    np.testing.assert_allclose(clean, poisoned, atol=1e-6)
