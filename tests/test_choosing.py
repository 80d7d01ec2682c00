"""The five methods against slow loops over single images in numpy, and their parts."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs import dynamicvit_vitti_camvid
from jaxseg import build, losses, selection
from jaxseg.bypass import Look
from jaxseg.errors import UserError
from jaxseg.execute import Packing
from jaxseg.methods import ats, dynamicvit, evit, evovit, svit
from jaxseg.models import attention, gates
from jaxseg.models.heads import ConvSpec
from jaxseg.models.initial import draw
from jaxseg.models.network import TEACHER, network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec
from jaxseg.models.vit import ViTSpec
from jaxseg.tasks import segment
from jaxseg.tokens import Rows
from jaxseg.training import weights_of
from jaxseg.weights import save_weights

VIT, PATCHES = ViTSpec(16, 4, 2, grid=(4, 5), patch=4), 20
HEADS = (HeadSpec((3,), ConvSpec(classes=3, channels=8)),)
ERF = np.vectorize(math.erf)


class Slow:
    """Blocks on a matrix of tokens [n, D] in float64."""

    def __init__(self, arrays: dict):
        self.arrays = {n: np.asarray(v, np.float64) for n, v in arrays.items()}

    def norm(self, name, x, epsilon=1e-6):
        wide = x - x.mean(-1, keepdims=True)
        y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon)
        return y * self.arrays[name + ".scale"] + self.arrays[name + ".bias"]

    def linear(self, name, x):
        return x @ self.arrays[name + ".kernel"] + self.arrays[name + ".bias"]

    @staticmethod
    def gelu(x):
        return x * 0.5 * (1 + ERF(x / math.sqrt(2)))

    def mix(self, i, x):
        """x after attention, the matrices [h, n, n], the lengths of values."""
        name = f"vit.blocks.{i}."
        qkv = self.linear(name + "attn.qkv", self.norm(name + "norm1", x))
        q, k, v = qkv.reshape(len(x), 3, VIT.heads, -1).transpose(1, 2, 0, 3)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = (weights @ v).swapaxes(0, 1).reshape(x.shape)
        lengths = np.sqrt((v**2).sum((0, 2)))
        return x + self.linear(name + "attn.out", out), weights, lengths

    def transform(self, i, x):
        name = f"vit.blocks.{i}."
        hidden = self.gelu(self.linear(name + "mlp.fc1", self.norm(name + "norm2", x)))
        return x + self.linear(name + "mlp.fc2", hidden)

    def block(self, i, x):
        return self.transform(i, self.mix(i, x)[0])

    def predictor(self, i, x, seen):
        name = f"method.gates.{i}."
        z = self.gelu(self.linear(name + "fc1", self.norm(name + "norm", x, 1e-5)))
        local, overall = np.split(z, 2, axis=-1)
        z = np.concatenate([local, np.broadcast_to(overall[seen].mean(0), local.shape)], -1)
        for layer in ("fc2", "fc3"):
            z = self.gelu(self.linear(name + layer, z))
        return self.linear(name + "fc4", z)

    def gate(self, i, x):
        name = f"method.gates.{i}."
        z = self.gelu(self.linear(name + "fc1", self.norm(name + "norm", x, 1e-5)))
        return self.linear(name + "fc2", z)


def shares(logits):
    both = np.exp(logits - logits.max(-1, keepdims=True))
    return (both / both.sum(-1, keepdims=True))[..., 0]


def best(score, count):
    return np.sort(np.argsort(-score, kind="stable")[:count])


def slow_svit(slow, x, method):
    patches = chosen = np.arange(len(x) - PATCHES, len(x))  # behind a class token
    for i in range(4):
        if i + 1 in method.layers:
            number = method.layers.index(i + 1)
            complex_ = method.gate == "complex"
            logits = slow.predictor(number, x, chosen) if complex_ else slow.gate(number, x)
            p, open_ = shares(logits), patches if method.reactivate else chosen
            chosen = open_[best(p[open_], round(p[open_].sum()))]
        inside = np.union1d(chosen, np.arange(len(x) - PATCHES))
        x[inside] = slow.block(i, x[inside])
    if not method.preserve:  # what heads see
        x[np.setdiff1d(np.arange(len(x)), inside)] = 0
    return x


def slow_dynamicvit(slow, x, method):
    left = np.arange(len(x))
    for i in range(4):
        if i + 1 in method.layers:
            number = method.layers.index(i + 1)
            p = shares(slow.predictor(number, x[left], np.arange(len(left))))
            left = left[best(p, int(method.keep[number] * len(x)))]
        x[left] = slow.block(i, x[left])
    return x


def slow_evit(slow, x, method):
    """Class token first; behind the patches the fused tokens, which are left out at the end."""
    left, slots = np.arange(len(x)), len(x)
    for i in range(4):
        if i + 1 not in method.layers:
            x[left] = slow.block(i, x[left])
            continue
        mixed, weights, _ = slow.mix(i, x[left])
        attention = weights.mean(0)[0, 1:]
        rate = method.keep[method.layers.index(i + 1)]
        chosen = best(attention, math.ceil(rate * (len(left) - 1)))
        others = np.setdiff1d(np.arange(len(attention)), chosen)
        fused = attention[others] @ mixed[1:][others]
        mixed = np.concatenate([mixed[:1], mixed[1:][chosen], fused[None]])
        left = np.concatenate([left[:1], left[1:][chosen], [len(x)]])
        x = np.concatenate([x, fused[None]])
        x[left] = slow.transform(i, mixed)
    return x[:slots]


def slow_ats(slow, x, method):
    left, patches = np.arange(len(x)), len(x) - 1
    for i in range(4):
        if i + 1 not in method.layers:
            x[left] = slow.block(i, x[left])
            continue
        mixed, weights, lengths = slow.mix(i, x[left])
        score = weights.sum(0)[0, 1:] * lengths[1:]
        points = round(method.keep[method.layers.index(i + 1)] * patches)
        chosen = slow_inverse_cdf(score, points)
        rows = np.concatenate([[0], 1 + chosen])
        left = left[rows]
        x[left] = slow.transform(i, mixed[rows])
    return x


def slow_inverse_cdf(score, points, clear=lambda margin: None):
    """``clear`` is told how far the second nearest is behind the nearest: float32 may see a tie."""
    order = np.argsort(score, kind="stable")
    sums = np.cumsum(score[order].astype(np.float64))
    span = sums[-1] - sums[0]
    scaled = (sums - sums[0]) / (span if span > 0 else 1.0)
    first = min(scaled[scaled > 0], default=1.0)
    samples = first + (1 - first) * np.linspace(0, 1, points)
    gaps = np.abs(samples[:, None] - scaled)
    different = np.where(scaled == scaled[gaps.argmin(1)][:, None], np.inf, gaps)
    clear((different.min(1) - gaps.min(1)).min())
    return np.sort(np.unique(order[gaps.argmin(1)]))


def slow_evovit(slow, x, method):
    standing = None
    for i in range(4):
        chosen = np.arange(len(x))
        if i + 1 in method.layers:
            rate = method.keep[method.layers.index(i + 1)]
            chosen = np.concatenate([[0], 1 + best(standing[1:], int(rate * (len(x) - 1)))])
        mixed, weights, _ = slow.mix(i, x[chosen])
        x[chosen] = slow.transform(i, mixed)
        heard = weights.sum(0)[0]
        if i + 1 in method.layers:
            standing[chosen] = 0.5 * standing[chosen] + 0.5 * heard
        else:
            standing = heard.copy()
    return x


LAYERS = (2, 3, 4)
METHODS = {
    "svit": (svit.Skip(LAYERS, (0.7, 0.5, 0.3)), slow_svit),
    "svit, table 3 and 4, class token": (
        svit.Skip(LAYERS, (0.7,) * 3, gate="complex", preserve=False, reactivate=False),
        slow_svit,
    ),
    "dynamicvit": (dynamicvit.Drop(LAYERS, (0.7, 0.5, 0.3)), slow_dynamicvit),
    "evit": (evit.Fuse(LAYERS, (0.7, 0.7, 0.7)), slow_evit),
    "ats": (ats.Sample(LAYERS, (0.9, 0.7, 0.5)), slow_ats),
    "evovit": (evovit.Wait(LAYERS, (0.5, 0.6, 0.4)), slow_evovit),
}


def numbers(spec) -> dict:
    rng = np.random.default_rng(0)
    params, stats = draw(*shapes(spec), seed=0)
    return {
        n: v + 0.3 * rng.standard_normal(v.shape, np.float32) for n, v in params.items()
    } | stats


@pytest.mark.parametrize("name", METHODS)
def test_against_a_slow_loop_over_images(name):
    method, slow = METHODS[name]
    vit = replace(VIT, class_token=name.endswith("class token"))
    spec = SparseSpec(vit, HEADS, method=method)
    net, arrays = network(spec), numbers(spec)
    images = np.random.default_rng(2).standard_normal((2, 16, 20, 3), np.float32)

    @jax.jit
    def run(arrays):
        model = net.bind(*net.split(arrays))
        carry = start = model.begin(images)
        for stage in range(3):
            carry, choice = model.decide(carry, stage)
            carry = Packing().pick(carry, choice)
        begin = spec.cuts[-1].position
        return start.x, model._run(carry, begin, 8, (3,), model._no_keys()[0]).taps[-1]

    start, ours = map(np.asarray, run(arrays))
    for i in range(2):
        theirs = slow(Slow(arrays), start[i].astype(np.float64), method)
        assert abs(theirs - start[i]).max() > 0.1
        np.testing.assert_allclose(ours[i, : len(theirs)], theirs, atol=2e-4)


def test_in_training_too_nobody_comes_back_where_none_may():
    rows, there = jnp.zeros((2, 30, 4)), jnp.ones((2, 30), bool)
    before = (jnp.arange(60).reshape(2, 30) % 2).astype(jnp.float32)
    look = Look(0, None, rows, before > 0, there, None, before, jax.random.key(0))
    gate = [lambda rows, seen: jnp.zeros((*rows.shape[:2], 2))]
    for back in (True, False):
        choice = svit.Skip((2,), (0.5,), reactivate=back).choose(gate, look)
        assert (choice.chosen & ~look.inside).any() == back and (choice.chosen & look.inside).any()
        np.testing.assert_array_equal(choice.weight, choice.chosen)


# --- selection


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_best_of_row_is_a_sort(seed, count):
    rng = np.random.default_rng(seed)
    score = rng.choice([-np.inf, -2.5, -0.0, 0.0, 1e-30, 0.5, 7.0], (3, 7)).astype(np.float32)
    candidate = rng.random((3, 7)) < 0.7
    ours = np.asarray(selection.best_of_row(jnp.asarray(score), jnp.asarray(candidate), count))
    for row, of_row, open_ in zip(ours, score, candidate, strict=True):
        at = np.flatnonzero(open_)
        expected = np.zeros(7, bool)
        expected[at[best(of_row[at], count)]] = True
        np.testing.assert_array_equal(row, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 6, 12)))
def test_inverse_cdf_is_the_nearest_of_all(seed, points):
    rng = np.random.default_rng(seed)
    score = rng.random((2, 9), np.float32) ** 3 * (rng.random((2, 9)) < 0.8)
    candidate = rng.random((2, 9)) < 0.8
    ours = np.asarray(selection.inverse_cdf(*map(jnp.asarray, (score, candidate)), points))
    for row, of_row, open_ in zip(ours, score, candidate, strict=True):
        at, expected = np.flatnonzero(open_), np.zeros(9, bool)
        if len(at):
            clear = lambda margin: assume(margin > 1e-5)  # noqa: E731
            expected[at[slow_inverse_cdf(of_row[at], points, clear)]] = True
        np.testing.assert_array_equal(row, expected)
        assert row.sum() <= points


# --- gates and their gradients


def test_straight_through_keeps_as_often_as_the_gate_says():
    logits = jnp.broadcast_to(jnp.array([0.4, -0.2]), (20000, 2))
    noise = jax.random.gumbel(jax.random.key(0), logits.shape)
    hard = np.asarray(gates.straight_through(logits, noise))
    assert set(np.unique(hard)) == {0.0, 1.0}
    assert abs(hard.mean() - shares(np.array([0.4, -0.2]))) < 0.01


def test_sampling_depends_on_seed_image_and_cut_alone():
    images = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    logits = jax.random.normal(jax.random.key(1), (3, 400, 2))
    noise = gates.fingerprint(images, 5)
    drawn = np.asarray(gates.sampled(logits, noise, 1))
    assert len(np.unique(noise)) == 3
    np.testing.assert_array_equal(gates.fingerprint(images[1:2], 5), noise[1:2])
    np.testing.assert_array_equal(gates.sampled(logits[1:2], noise[1:2], 1)[0], drawn[1])
    for other in (gates.sampled(logits, noise, 2), gates.sampled(logits, noise + 1, 1)):
        assert (np.asarray(other) != drawn).mean() > 0.1
    p = shares(np.asarray(logits))
    assert abs(drawn.mean() - p.mean()) < 0.05 and p[drawn].mean() > p[~drawn].mean() + 0.1


def test_a_policy_of_ones_is_attention_and_a_hard_one_hides_keys():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
    ones = jnp.ones((2, 9))
    whole = attention.attend(q, k, v, Rows(None, 0, ones))
    np.testing.assert_allclose(whole, attention.attend(q, k, v, Rows(None, 0)), atol=1e-5)
    keep = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 9))
    hard = attention.attend(q, k, v, Rows(keep, 0, keep.astype(jnp.float32)))
    masked = attention.attend(q, k, v, Rows(keep, 0))
    np.testing.assert_allclose(hard[keep], masked[keep], atol=1e-5)
    total = lambda p: (attention.attend(q, k, v, Rows(None, 0, p)) * v[::-1]).sum()  # noqa: E731
    gradient = jax.grad(total)(ones)
    step = 1e-2 * jnp.zeros((2, 9)).at[1, 3].set(1.0)
    slope = (total(ones + step) - total(ones - step)) / 2e-2
    np.testing.assert_allclose(gradient[1, 3], slope, rtol=2e-2, atol=1e-3)


# --- losses


def test_usage_by_hand():
    used = [jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])]
    among = [jnp.ones((2, 4), bool)]
    usage = losses.usage_term
    assert usage(used, among, (0.5,), 4.0, False).value() == pytest.approx(4 * 0.125**2)
    assert usage(used, among, (0.5,), 4.0, True).value() == pytest.approx(4 * 0.25**2 / 2)
    two = [*used, jnp.ones((2, 4))]
    both = usage(two, among * 2, (0.5, 1.0), 1.0, False)
    assert both.value() == pytest.approx(0.125**2 / 2)
    few = [jnp.array([[True, True, False, False], [True, False, False, False]])]
    assert usage(used, few, (0.5,), 4.0, False).value() == pytest.approx(4 * 0.5**2)


def test_usage_of_two_devices_is_that_of_the_joined_batch():
    used = jax.random.uniform(jax.random.key(0), (4, 6))

    def loss(used, axis=None):
        among = [jnp.ones(used.shape, bool)]
        return losses.usage_term([used], among, (0.3,), 4.0, False, axis).value()

    def of_device(part):
        value, grad = jax.value_and_grad(lambda x: loss(x, "devices"))(part)
        return value, grad

    values, grads = jax.vmap(of_device, axis_name="devices")(used.reshape(2, 2, 6))
    np.testing.assert_allclose(values, loss(used), rtol=1e-6)
    # Gradients are averaged over devices afterwards.
    np.testing.assert_allclose(grads.reshape(4, 6) / 2, jax.grad(loss)(used), rtol=1e-5)


def test_distillation_learns_from_frozen_weights():
    spec = SparseSpec(VIT, HEADS, method=dynamicvit.Drop((2,), (0.5,), distil=0.5))
    arrays = numbers(spec)
    plain = SegmenterSpec(VIT, HEADS)
    own = {name: arrays[name] for part in shapes(plain) for name in part}
    net, labels = network(spec), np.zeros((2, 16, 20), np.uint8)
    params, stats = net.split(arrays)
    params |= spec.teacher_arrays(own)
    images = np.random.default_rng(2).standard_normal((2, 16, 20, 3), np.float32)

    def loss(params):
        terms = net.bind(params, stats).losses(images, labels, key=jax.random.key(0))
        both = {n: term.value() for n, term in terms.items() if n.startswith("distil")}
        return sum(both.values()), both

    grads, terms = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert set(terms) == {"distil.scores", "distil.features"} and min(terms.values()) > 1e-6
    assert not any(np.any(grad) for n, grad in grads.items() if n.startswith(TEACHER))
    assert all(np.any(grads[n]) for n in ("vit.patch_embed.kernel", "method.gates.0.fc4.kernel"))
    kept, _ = weights_of({"params": params, "ema": {}, "stats": stats})
    assert set(kept) == set(net.split(arrays)[0])


def test_who_distils_needs_a_trained_head(tmp_path):
    method = dynamicvit.Drop((2,), (0.5,), distil=0.5)
    spec, file = SparseSpec(VIT, HEADS, method=method), str(tmp_path / "model.safetensors")
    config = dynamicvit_vitti_camvid.get_config()
    config.init_from = file
    whole, other = numbers(SegmenterSpec(VIT, HEADS)), "heads.0.classify.kernel"

    def start():
        return segment.start(config, spec, *draw(*shapes(spec), seed=0))

    for file_has, fresh in (
        ({name: value for name, value in whole.items() if name.startswith("vit")}, "9 arrays"),
        (whole | {other: np.ones((8, 4), np.float32)}, rf"1 arrays of the last head \({other}"),
    ):
        save_weights(file, file_has, {})
        with pytest.raises(UserError, match=f"{fresh}.*distillation learns from a trained"):
            start()
    save_weights(file, whole, {})
    params, stats, _ = start()
    taught = build.teacher(config, spec, params | stats)
    assert taught.keys() == {TEACHER + name for name in whole}
    config.init_from = ""
    with pytest.raises(UserError, match="config.init_from=''"):
        build.teacher(config, spec, params | stats)


def test_distillation_of_equals_is_nothing():
    scores = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 3, 4, 5)))
    assert losses.score_distillation(scores, scores, 1.0).value() == pytest.approx(0.0, abs=1e-6)
    assert losses.score_distillation(scores, scores[::-1], 1.0).value() > 0.01
    x, none = jnp.ones((2, 3, 4)), jnp.zeros((2, 3), bool)
    assert losses.feature_distillation(x, 3 * x, none, 1.0).value() == 0.0
    assert losses.feature_distillation(x, 3 * x, ~none, 0.5).value() == pytest.approx(2.0)


def test_mistakes_are_named():
    for wrong in ({"selection": "best"}, {"gate": "deep"}, {"ratio": "both"}):
        with pytest.raises(UserError, match=f"method.{next(iter(wrong))}"):
            svit.Skip(**wrong)
    for layers in ((1, 2), (5, 9)):
        with pytest.raises(UserError, match="start at 2 or later and leave none out"):
            evovit.Wait(layers, (0.5, 0.5))
    rising = {"layers": (2, 3), "keep": (0.5, 0.7)}
    for make in (
        lambda: dynamicvit.Drop(**rising),
        lambda: svit.Skip(**rising, selection="static", reactivate=False),
    ):
        with pytest.raises(UserError, match=r"method.keep=\(0.5, 0.7\): shares are of all tokens"):
            make()
    svit.Skip(**rising, selection="static")  # who comes back makes the share rise
    svit.Skip(**rising, reactivate=False)  # a target, no count
