"""Prediction equals a slow loop over windows, scales and mirror images; evaluation counts right."""

import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import metrics, windows
from jaxseg.data.classes import make_classes
from jaxseg.data.transforms import keep_ratio_size
from jaxseg.errors import UserError
from jaxseg.evaluation import evaluate
from jaxseg.execute import Answer
from jaxseg.inference import EvalSpec, Predictor

CLASSES = 5
MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
PARAMS = {"kernel": np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)}


def score(params, images):
    """Depends on the pixel, on its column in the window, and on the window as a whole."""
    height, width = images.shape[1:3]
    ramp = jnp.linspace(0.0, 1.0, width)[:, None] * jnp.linspace(0.1, 0.5, height)[:, None, None]
    whole = images.mean(axis=(1, 2), keepdims=True)
    return jnp.sin(3 * (images + ramp + whole) @ params["kernel"])


class Pointwise:
    """A program whose tokens are pixels."""

    patch, compiled = 1, 1

    def __init__(self, score=score):
        self.score = jax.jit(score)

    def prepare(self, arrays):
        return arrays

    def __call__(self, params, images):
        batch, *grid = images.shape[:3]
        alive = np.full((batch, 1), grid[0] * grid[1])
        nowhere, alone = (np.full((batch, *grid), value) for value in (-1, 1))
        return Answer(self.score(params, images), alive, nowhere, alone)


def predictor_of(spec, score=score):
    return Predictor(Pointwise(score), spec)


def picture(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 2)


def slow_map(image, spec):
    """Scores [h, w, K] of a normalised image: windows one at a time, in float64."""
    if spec.mode == "whole":
        return np.asarray(score(PARAMS, image[None])[0], np.float64)
    (height, width), (ch, cw), (sh, sw) = image.shape[:2], spec.crop, spec.stride
    padded = np.zeros((max(height, ch), max(width, cw), 3), np.float32)
    padded[:height, :width] = image
    total = np.zeros((*padded.shape[:2], CLASSES))
    count = np.zeros((*padded.shape[:2], 1))
    for row in range(max(height - ch + sh - 1, 0) // sh + 1):
        for column in range(max(width - cw + sw - 1, 0) // sw + 1):
            bottom = min(row * sh + ch, padded.shape[0])
            right = min(column * sw + cw, padded.shape[1])
            window = slice(bottom - ch, bottom), slice(right - cw, right)
            total[window] += np.asarray(score(PARAMS, padded[window][None])[0])
            count[window] += 1
    return (total / count)[:height, :width]


def slow_scores(image, spec):
    """mmseg's order: resize, mirror, score, turn back, resize to the original, average."""
    size, views = image.shape[:2], []
    for scale in spec.scales:
        long, short = spec.resize or (max(size), min(size))
        height, width = keep_ratio_size(size, int(long * scale), int(short * scale))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        small = (small.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
        for mirrored in (False, True)[: 1 + spec.flip]:
            scores = slow_map(np.ascontiguousarray(small[:, ::-1]) if mirrored else small, spec)
            scores = scores[:, ::-1] if mirrored else scores
            views.append(jax.image.resize(scores, (*size, CLASSES), "bilinear", antialias=False))
    return np.mean(views, axis=0)


SPECS = {
    "slide": {},
    "slide, resized": {"resize": (70, 40)},
    "slide, batch not full": {"batch_size": 4, "resize": (90, 60)},
    "slide, small image": {"crop": (64, 96), "stride": (64, 96), "batch_size": 2},
    "slide, scales and mirror": {"scales": (0.5, 1.0, 1.75), "flip": True, "batch_size": 3},
    "whole": {"mode": "whole"},
    "whole, resized": {"mode": "whole", "resize": (40, 30)},
    "whole, scales and mirror": {"mode": "whole", "scales": (0.75, 1.25), "flip": True},
}


@pytest.mark.parametrize("name", SPECS)
def test_prediction_equals_slow_loop(name):
    spec = EvalSpec(
        **{"crop": (24, 32), "stride": (16, 20), "mean": MEAN, "std": STD} | SPECS[name]
    )
    predictor, image = predictor_of(spec), picture((50, 75))
    expected = slow_scores(image, spec)
    scores = predictor.scores(PARAMS, image)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
    (found,) = predictor.predict(PARAMS, [image])
    labels = found.labels
    assert labels.dtype == np.uint8 and labels.shape == (50, 75)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])


def test_windows_layout_of_mmseg():
    assert windows.axis_starts(512, 512, 341).tolist() == [0]
    assert windows.axis_starts(683, 512, 341).tolist() == [0, 171]
    assert windows.axis_starts(853, 512, 341).tolist() == [0, 341]
    assert windows.axis_starts(854, 512, 341).tolist() == [0, 341, 342]
    assert windows.axis_starts(300, 512, 341).tolist() == [0]
    assert windows.window_starts((72, 100), (64, 64), (42, 42)).tolist() == [
        [0, 0], [0, 36], [8, 0], [8, 36]
    ]  # fmt: skip


def test_coverage_counts_windows_and_is_safe_to_divide_by():
    rows, columns = windows.coverage((5, 3), (3, 4), (2, 2), (8, 6))
    assert rows.tolist() == [1, 1, 2, 1, 1, 1, 1, 1]
    assert columns.tolist() == [1] * 6


@pytest.mark.parametrize("size", [(50, 75), (20, 75), (10, 12)])
def test_scores_of_a_normalised_image(size):
    spec = EvalSpec(crop=(24, 32), stride=(16, 20))
    image = np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)
    out = predictor_of(spec).of_normalised(PARAMS, image)
    np.testing.assert_allclose(out, slow_map(image, spec), rtol=0, atol=2e-5)


def test_images_of_one_size_are_answered_together():
    spec = EvalSpec(mode="whole", resize=(40, 30), batch_size=4, mean=MEAN, std=STD)
    shapes = []

    def counting(params, images):
        shapes.append(images.shape)
        return score(params, images)

    predictor = predictor_of(spec, counting)
    pictures = [picture((50, 75), seed) for seed in range(3)]
    together = predictor.predict(PARAMS, pictures)
    assert predictor.together == 4 and shapes == [(4, 27, 40, 3)] and len(together) == 3
    for image, found in zip(pictures, together, strict=True):
        (alone,) = predictor.predict(PARAMS, [image])
        np.testing.assert_array_equal(found.labels, alone.labels)
        assert found.inputs == ((27, 40),) and found.alive.tolist() == [[27 * 40]]


def test_a_token_grid_covers_whole_patches_and_is_cut():
    """A 20 x 27 input on 8-pixel patches: cell (r, c) stays over its own 8 x 8 pixels."""
    rows, columns = windows.to_pixels((3, 4), (20, 27), 8)
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    full = jax.image.resize(scores, (24, 32, 5), "bilinear", antialias=False)
    ours = windows.interpolated(scores, (rows, columns))
    np.testing.assert_allclose(ours, full[:20, :27], atol=1e-6)


def test_slide_compiles_the_network_once():
    shapes = []

    def counting(params, images):
        shapes.append(images.shape)
        return score(params, images)

    spec = EvalSpec(
        crop=(24, 32), stride=(16, 20), batch_size=2, resize=(80, 40), scales=(1.0, 1.5)
    )
    predictor = predictor_of(spec, counting)
    for size in [(30, 40), (41, 57), (64, 20), (90, 33)]:
        assert predictor.predict(PARAMS, [picture(size)])[0].labels.shape == size
    assert shapes == [(2, 24, 32, 3)]


@pytest.mark.parametrize("name", SPECS)
def test_inputs_are_what_the_network_gets(name):
    spec = EvalSpec(**{"crop": (24, 32), "stride": (16, 20)} | SPECS[name] | {"batch_size": 1})
    given = []

    def watching(params, images):
        jax.debug.callback(lambda x: given.append(x.shape[1:3]), images)
        return score(params, images)

    (found,) = predictor_of(spec, watching).predict(PARAMS, [picture((50, 75))])
    jax.effects_barrier()
    assert given == list(found.inputs)
    assert len(found.alive) == len(found.left) == len(given)


def test_compiled_for_names_what_is_compiled():
    slide = predictor_of(EvalSpec(crop=(24, 32), stride=(16, 20)))
    assert slide.compiled_for((30, 40)) == slide.compiled_for((40, 50))
    assert slide.compiled_for((30, 40)) != slide.compiled_for((30, 70))
    whole = predictor_of(EvalSpec(mode="whole", resize=(60, 30)))
    assert whole.compiled_for((100, 120)) != whole.compiled_for((100, 110))


@pytest.mark.parametrize(
    "wrong, field",
    [
        ({"mode": "tiles"}, "config.eval.mode='tiles'"),
        ({"crop": (32, 32), "stride": (33, 32)}, "config.eval.stride"),
        ({"stride": (0, 1)}, "config.eval.stride"),
        ({"scales": ()}, "config.eval.scales"),
        ({"scales": (1.0, -1.0)}, "config.eval.scales"),
        ({"batch_size": 0}, "config.eval.batch_size=0"),
    ],
)
def test_spec_refuses_nonsense(wrong, field):
    with pytest.raises(UserError, match=field.replace("(", r"\(")):
        EvalSpec(**wrong)


class Pictures:
    """A source of ``count`` images; the last is of another size."""

    classes = make_classes([f"c{k}" for k in range(CLASSES)])

    def __init__(self, count, broken=-1):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f"image {i} is broken: replace it")
        image = picture((30, 40) if i < self.count - 1 else (30, 90), seed=i)
        label = np.random.default_rng(i).integers(0, CLASSES, image.shape[:2]).astype(np.uint8)
        label[:3] = 255
        return {"image": image, "label": label, "name": f"val/{i}"}


def run(predictor, source, **kwargs):
    return evaluate({"model": (predictor, PARAMS)}, source, **kwargs)["model"]


def test_evaluate_counts_and_times(capsys):
    source = Pictures(6)
    predictor = predictor_of(EvalSpec(crop=(24, 32), stride=(16, 20)))
    result = run(predictor, source, pictures=3, label="val")
    expected = np.zeros((CLASSES + 1, CLASSES), np.int64)
    for i in range(6):
        (found,) = predictor.predict(PARAMS, [source[i]["image"]])
        one = metrics.confusion(found.labels, source[i]["label"], CLASSES)
        expected += one
        assert result.accuracies[i] == pytest.approx(one.trace() / one.sum())
    np.testing.assert_array_equal(result.matrix, expected)
    assert result.scores.miou == metrics.summarise(expected, source.classes.names).miou
    assert result.names == tuple(f"val/{i}" for i in range(6))
    assert result.sizes == ((30, 40),) * 5 + ((30, 90),)
    assert [s.name for s in result.samples] == ["val/0", "val/2", "val/5"]
    np.testing.assert_array_equal(result.samples[1].label, source[2]["label"])
    # The first image of each of the two shapes is compiled for, and then timed again.
    assert len(result.seconds) == 6 and result.compile_seconds > max(result.seconds)
    assert result.images_per_second == pytest.approx(6 / sum(result.seconds))
    assert "val  6/6" in capsys.readouterr().out


def test_evaluate_batches_images_of_one_size():
    source = Pictures(6)
    spec = EvalSpec(mode="whole", batch_size=2)
    alone = run(predictor_of(EvalSpec(mode="whole")), source)
    together = run(predictor_of(spec), source, pictures=6)
    np.testing.assert_array_equal(alone.matrix, together.matrix)
    assert together.names == alone.names and len(together.samples) == 6
    assert len(together.seconds) == 4  # calls of 2, 2, 1 and, of another size, 1


def test_predictors_take_turns_on_the_same_images():
    calls = []

    class Named(Pointwise):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def __call__(self, params, images):
            calls.append(self.name)
            return super().__call__(params, images)

    spec = EvalSpec(mode="whole")
    both = {name: (Predictor(Named(name), spec), PARAMS) for name in "ab"}
    results = evaluate(both, Pictures(4))
    # The first turn compiles, and so does the last, whose image has another size: twice each.
    assert "".join(calls) == "bbaa" + "ab" + "ba" + "aabb"
    np.testing.assert_array_equal(results["a"].matrix, results["b"].matrix)


def test_evaluate_reads_ahead():
    """The second image is being read while the first is predicted."""
    source, reading = Pictures(3), []
    get = source.__getitem__

    class Watched(Pictures):
        def __getitem__(self, i):
            reading.append(i)
            return get(i)

    seen = []

    class Slow(Predictor):
        def predict(self, params, images):
            deadline = time.monotonic() + 10
            while len(reading) < min(3, len(seen) // 2 + 2) and time.monotonic() < deadline:
                time.sleep(0.001)
            seen.append(len(reading))
            return super().predict(params, images)

    run(Slow(Pointwise(), EvalSpec()), Watched(3))
    # Images 0 and 2 are new sizes: predicted once to compile and once more.
    assert seen == [2, 2, 3, 3, 3] and reading == [0, 1, 2]


def test_evaluate_refuses_nothing_and_passes_errors_on():
    predictor = predictor_of(EvalSpec(crop=(24, 32), stride=(16, 20)))
    with pytest.raises(UserError, match="holds no image"):
        run(predictor, Pictures(0))
    with pytest.raises(UserError, match="image 1 is broken"):
        run(predictor, Pictures(3, broken=1))


def test_a_single_image_has_a_rate():
    result = run(predictor_of(EvalSpec(crop=(24, 32), stride=(16, 20))), Pictures(1))
    assert len(result.seconds) == 1 and result.images_per_second > 0


def test_a_call_that_compiles_the_network_is_made_again():
    """A packed model meets a new capacity in the middle of a data set."""

    class Growing(Pointwise):
        calls = 0

        def __call__(self, params, images):
            self.calls += 1
            self.compiled = 1 + (self.calls >= 4)
            return super().__call__(params, images)

    program = Growing()
    run(Predictor(program, EvalSpec(mode="whole")), Pictures(5))
    # Images 0 and 4 are of new sizes; the call for image 2 is the fourth.
    assert program.calls == 5 + 3
