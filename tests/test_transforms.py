"""Transforms against stored mmsegmentation numbers and slow independent implementations."""

import colorsys
import pathlib

import cv2
import numpy as np
import pytest

from jaxseg.data import transforms
from jaxseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Recipe, train_sample

# mmseg 1.2.2 and mmcv 1.7 outputs for one 24x31 BGR image: normalise, then pad to 32x40.
with np.load(pathlib.Path(__file__).parent / "golden" / "preprocess.npz") as stored:
    GOLDEN = dict(stored)
STATISTICS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((127.5,) * 3, (127.5,) * 3)}


def random_image(height=60, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_recipe(**changes):
    """No randomness: the size stays where long and short are the image's sides."""
    base = dict(ratio=(1.0, 1.0), cat_max_ratio=1.0, flip=0.0, distort=False)
    return Recipe(**(base | changes))


@pytest.mark.parametrize("name", STATISTICS)
def test_normalise_and_pad_match_mmseg(name):
    mean, std = STATISTICS[name]
    image = GOLDEN["bgr0"][:, :, ::-1]
    recipe = plain_recipe(long=31, short=24, crop=(32, 40), mean=mean, std=std)
    label = np.zeros(image.shape[:2], np.uint8)
    sample = train_sample({"image": image, "label": label}, recipe, np.random.default_rng(0))
    assert sample["image"].dtype == np.float32 and sample["label"].dtype == np.uint8
    np.testing.assert_allclose(
        sample["image"].transpose(2, 0, 1), GOLDEN[f"padded_{name}"], rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(sample["label"], GOLDEN["label_padded"])
    older = GOLDEN[f"imnormalize_{name}"]
    np.testing.assert_allclose(transforms.normalise(image, mean, std), older, rtol=0, atol=1e-6)
    tested = transforms.test_image(image, None, None, mean, std)
    np.testing.assert_array_equal(tested, transforms.normalise(image, mean, std))


@pytest.mark.parametrize(
    ("size", "long", "short", "expected"),
    [
        ((512, 683), 2048, 512, (512, 683)),
        ((480, 640), 2048, 512, (512, 683)),
        ((640, 480), 2048, 512, (683, 512)),
        ((375, 500), 2560, 640, (640, 853)),
        ((100, 1000), 2048, 512, (205, 2048)),  # the long side binds
        ((5, 6), 3, 5, (3, 3)),  # 2.5 rounds up, not to even
        ((1, 5000), 2048, 512, (1, 2048)),  # never zero pixels
    ],
)
def test_keep_ratio_size(size, long, short, expected):
    assert transforms.keep_ratio_size(size, long, short) == expected


def test_test_image_resizes_by_the_rule():
    out = transforms.test_image(random_image(30, 50), 200, 60, (0.0,) * 3, (1.0,) * 3)
    assert out.shape == (60, 100, 3) and out.dtype == np.float32


def naive_window(label, crop, cat_max_ratio, rng):
    """The crop rule spelt out; returns the window and the number of draws."""

    def draw():
        top = int(rng.integers(0, max(label.shape[0] - crop[0], 0) + 1))
        left = int(rng.integers(0, max(label.shape[1] - crop[1], 0) + 1))
        return top, left

    (top, left), draws = draw(), 1
    for _ in range(10):
        pixels = [v for v in label[top : top + crop[0], left : left + crop[1]].ravel() if v != 255]
        shares = [pixels.count(v) / len(pixels) for v in set(pixels)]
        if len(shares) > 1 and max(shares) < cat_max_ratio:
            break
        (top, left), draws = draw(), draws + 1
    return top, left, draws


def test_crop_window_matches_naive_rule():
    label = np.zeros((40, 50), np.uint8)
    label[:, 20:] = 1
    label[25:, 30:] = 255
    all_draws, tops = [], set()
    for seed in range(150):
        top, left, draws = naive_window(label, (16, 12), 0.75, np.random.default_rng(seed))
        window = transforms.crop_window(label, (16, 12), 0.75, np.random.default_rng(seed))
        assert window == np.s_[top : top + 16, left : left + 12]
        all_draws.append(draws)
        tops.add(top)
    assert min(all_draws) == 1 and max(all_draws) == 11  # both ways out were taken
    assert {0, 24} <= tops  # first and last position can be drawn


def test_crop_window_share_limit_is_exclusive_and_optional():
    label = np.zeros((4, 4), np.uint8)
    label[0] = 1  # class 0 has exactly 0.75

    class Counting:
        draws = 0

        def integers(self, high):
            self.draws += 1
            return 0

    for limit, expected in ((0.75, 22), (0.76, 2), (1.0, 2)):  # two numbers per draw
        rng = Counting()
        transforms.crop_window(label, (4, 4), limit, rng)
        assert rng.draws == expected


def test_crop_larger_than_image_keeps_it_whole():
    label = np.zeros((10, 30), np.uint8)
    rows, columns = transforms.crop_window(label, (20, 20), 0.75, np.random.default_rng(0))
    assert label[rows].shape[0] == 10 and label[:, columns].shape[1] == 20


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -31.7), (1.0, 20.2), (0.53, 0.0), (1.49, 0.0)])
def test_scale_shift_is_clip_and_truncate(scale, shift):
    image = random_image()
    expected = np.clip(image.astype(np.float32) * scale + shift, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(transforms.scale_shift(image, scale, shift), expected)


def slow_hsv(image, change):
    """Applies change(h, s, v) per pixel on 8-bit HSV (h of 180) computed with colorsys."""
    out = np.empty_like(image)
    for index in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[index] / 255))
        h, s, v = change(round(h * 180) % 180, round(s * 255), round(v * 255))
        out[index] = np.round(255 * np.array(colorsys.hsv_to_rgb(h / 180, s / 255, v / 255)))
    return out


@pytest.mark.parametrize("shift", [-18, -5, 17])
def test_shift_hue_matches_slow_version(shift):
    image = random_image(25, 25)
    slow = slow_hsv(image, lambda h, s, v: ((h + shift) % 180, s, v))
    difference = np.abs(transforms.shift_hue(image, shift).astype(int) - slow)
    # One 8-bit hue step is up to 8.5 grey levels; only ties round differently.
    assert difference.max() <= 9 and (difference <= 1).mean() > 0.98


@pytest.mark.parametrize("scale", [0.5, 1.4])
def test_scale_saturation_matches_slow_version(scale):
    image = random_image(25, 25)
    slow = slow_hsv(image, lambda h, s, v: (h, int(min(s * scale, 255)), v))
    difference = np.abs(transforms.scale_saturation(image, scale).astype(int) - slow)
    assert difference.max() <= 9 and (difference <= 1).mean() > 0.98


def test_hsv_steps_equal_the_bgr_ones():
    """mmseg distorts BGR images; ours are RGB and must come out as the same picture."""
    image = random_image()
    hsv = cv2.cvtColor(np.ascontiguousarray(image[:, :, ::-1]), cv2.COLOR_BGR2HSV)
    hue, saturation = hsv.copy(), hsv.copy()
    hue[:, :, 0] = (hue[:, :, 0].astype(int) - 11) % 180
    saturation[:, :, 1] = np.clip(saturation[:, :, 1].astype(np.float32) * 1.3, 0, 255)
    for ours, theirs in (
        (transforms.shift_hue(image, -11), hue),
        (transforms.scale_saturation(image, 1.3), saturation),
    ):
        np.testing.assert_array_equal(ours[:, :, ::-1], cv2.cvtColor(theirs, cv2.COLOR_HSV2BGR))


class Scripted:
    """A generator whose coins are given and whose ranges are recorded; numbers come from low."""

    def __init__(self, coins):
        self.coins, self.ranges = list(coins), []

    def random(self):
        return 0.25 if self.coins.pop(0) else 0.75

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return low

    def integers(self, low, high):
        self.ranges.append((low, high))
        return low


def test_distort_order_and_ranges():
    image = random_image()
    rng = Scripted([False, True, True, True, True])  # contrast second
    early = transforms.distort(image, rng)
    assert rng.ranges == [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18)] and not rng.coins
    steps = transforms.scale_shift(image, 1.0, -32)
    steps = transforms.scale_shift(steps, 0.5, 0.0)
    steps = transforms.shift_hue(transforms.scale_saturation(steps, 0.5), -18)
    np.testing.assert_array_equal(early, steps)
    rng = Scripted([True, False, True, True, True])  # no brightness, contrast last
    late = transforms.distort(image, rng)
    steps = transforms.shift_hue(transforms.scale_saturation(image, 0.5), -18)
    np.testing.assert_array_equal(late, transforms.scale_shift(steps, 0.5, 0.0))
    assert transforms.distort(image, Scripted([False] * 5)) is image


def test_image_and_label_stay_aligned_and_inputs_unchanged():
    label = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((20, 20), np.uint8))
    image = np.repeat(label[:, :, None] * 20, 3, axis=2)
    sample = {"image": image.copy(), "label": label.copy()}
    recipe = Recipe(
        long=80, short=60, crop=(50, 70), distort=False, mean=(0.0,) * 3, std=(20.0,) * 3
    )
    flipped = 0
    for seed in range(20):
        out = train_sample(sample, recipe, np.random.default_rng(seed))
        inside = out["label"] != 255
        # Bilinear blending touches only the borders between the blocks.
        assert (np.abs(out["image"][..., 0] - out["label"])[inside] < 0.01).mean() > 0.75
        assert not out["image"][~inside].any()
        row = out["label"][0][inside[0]].astype(int)
        flipped += bool((np.diff(row) < 0).any())
    assert 4 <= flipped <= 16
    np.testing.assert_array_equal(sample["image"], image)
    np.testing.assert_array_equal(sample["label"], label)


def test_labels_are_not_blended():
    label = np.random.default_rng(0).choice(np.uint8([0, 100]), (30, 40))
    sample = {"image": np.zeros((30, 40, 3), np.uint8), "label": label}
    for seed in range(5):
        out = train_sample(sample, Recipe(40, 30, (25, 25)), np.random.default_rng(seed))
        assert set(np.unique(out["label"])) <= {0, 100, 255}


def test_ratio_range_scales_the_image():
    label = np.zeros((40, 80), np.uint8)
    sample = {"image": np.zeros((40, 80, 3), np.uint8), "label": label}
    heights = []
    for seed in range(100):
        recipe = plain_recipe(long=80, short=40, crop=(80, 160), ratio=(0.5, 2.0))
        out = train_sample(sample, recipe, np.random.default_rng(seed))
        heights.append(int((out["label"][:, 0] == 0).sum()))
    assert min(heights) in range(20, 24) and max(heights) in range(76, 80)
