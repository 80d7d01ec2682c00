"""Batches depend on the step alone: not on where a run starts, nor on who prepares them."""

import contextlib
import itertools
import multiprocessing
import threading

import numpy as np
import pytest

from jaxseg.data.classes import make_classes
from jaxseg.data.folder import folder
from jaxseg.data.pipeline import train_batches
from jaxseg.data.shapes import shapes
from jaxseg.data.transforms import Recipe
from jaxseg.errors import UserError

RECIPE = Recipe(long=40, short=32, crop=(24, 32))
IDENTITY = Recipe(
    long=4, short=4, crop=(4, 4), ratio=(1.0, 1.0), cat_max_ratio=1.0, flip=0.0, distort=False,
    mean=(0.0,) * 3, std=(1.0,) * 3,
)  # fmt: skip


class Numbered:
    """Example i is a picture filled with i."""

    classes = make_classes(["a"])

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.full((4, 4, 3), index, np.uint8)
        return {"image": image, "label": image[:, :, 0], "name": str(index)}


def take(count, *args, **kwargs):
    with contextlib.closing(train_batches(*args, **kwargs)) as batches:
        return list(itertools.islice(batches, count))


def numbers(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch["image"]]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_batches_have_the_documented_form():
    (batch,) = take(1, shapes(3, (40, 50), 0), RECIPE, 2, seed=0)
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (2, 24, 32, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (2, 24, 32) and batch["label"].dtype == np.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_restart_at_a_step_is_bit_identical(workers):
    source = shapes(7, (40, 50), 0)
    whole = take(9, source, RECIPE, 3, seed=5)
    resumed = take(5, source, RECIPE, 3, seed=5, start_step=4, workers=workers)
    assert_same(resumed, whole[4:])
    if workers == 0:
        assert not np.array_equal(whole[0]["image"], take(1, source, RECIPE, 3, 6)[0]["image"])


def test_every_epoch_is_complete_and_newly_ordered():
    stream = numbers(take(15, Numbered(10), IDENTITY, 4, seed=1))  # batches straddle the epochs
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_augmentation_differs_by_example_and_epoch():
    batches = take(4, shapes(1, (40, 50), 0), RECIPE, 2, seed=0)  # eight times the same scene
    pictures = {image.tobytes() for batch in batches for image in batch["image"]}
    assert len(pictures) == 8


def test_shards_share_out_the_common_stream():
    whole = take(5, Numbered(7), IDENTITY, 4, seed=2)
    parts = [take(5, Numbered(7), IDENTITY, 2, seed=2, shard=(i, 2)) for i in range(2)]
    joined = [each for pair in zip(*parts, strict=True) for each in pair]
    assert numbers(whole) == numbers(joined)
    whole = take(3, shapes(3, (40, 50), 0), RECIPE, 4, seed=2)
    part = take(3, shapes(3, (40, 50), 0), RECIPE, 2, seed=2, shard=(1, 2))
    for batch, half in zip(whole, part, strict=True):
        np.testing.assert_array_equal(batch["image"][2:], half["image"])


def test_batch_may_exceed_the_data_set():
    batches = take(2, Numbered(3), IDENTITY, 7, seed=0)
    assert np.bincount(numbers(batches)).tolist() in ([5, 5, 4], [5, 4, 5], [4, 5, 5])


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="no example"):
        train_batches(Numbered(0), IDENTITY, 1, seed=0)
    with pytest.raises(UserError, match="batch size 0"):
        train_batches(Numbered(1), IDENTITY, 0, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_is_named(tmp_path, workers):
    for part in ("images", "labels"):
        (tmp_path / part / "train").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("0 a\n1 b\n")
    (tmp_path / "images" / "train" / "x.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "labels" / "train" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/x\.jpg: cannot read") as raised:
        take(1, folder(tmp_path, "train"), RECIPE, 2, seed=0, workers=workers)
    assert "\n" not in str(raised.value)


def test_close_stops_threads_and_workers():
    threads = threading.active_count()
    take(2, Numbered(3), IDENTITY, 2, seed=0)
    take(1, Numbered(3), IDENTITY, 2, seed=0, workers=1)
    assert threading.active_count() <= threads
    assert not multiprocessing.active_children()
