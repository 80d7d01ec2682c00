"""Data of classifiers: folders per class, ImageNet's archives, crops, mixed images."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import vits_imagenet
from jaxseg import build
from jaxseg.data import builders, class_transforms
from jaxseg.data.builders import imagenet2012
from jaxseg.data.class_transforms import ClassRecipe
from jaxseg.data.classes import make_classes
from jaxseg.data.classification import class_folder
from jaxseg.errors import UserError

# --- sources


def encode(image, file_format="JPEG") -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(image).save(buffer, file_format)
        return buffer.getvalue()


def photo(seed: int, size=(20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def folder_per_class(root: pathlib.Path, files: list[str]) -> None:
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if file.endswith("png") else "JPEG"
        (root / file).write_bytes(encode(photo(i), kind))


def test_folder_per_class(tmp_path):
    files = ["train/n02/a.JPEG", "train/n02/b.png", "train/n01/c.jpg", "val/n03/d.JPEG"]
    folder_per_class(tmp_path, [*files, "test/flat.JPEG", "train/.hidden/x.jpg"])
    (tmp_path / "train" / "n01" / "note.txt").write_text("no image")
    source = class_folder(tmp_path, "train")
    assert source.classes.names == ("n01", "n02", "n03")  # of all splits
    assert [source[i]["name"] for i in range(3)] == ["train/n01/c.jpg", *files[:2]]
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 1]
    np.testing.assert_array_equal(source[2]["image"], photo(1))
    assert int(class_folder(tmp_path, "val")[0]["label"]) == 2
    (tmp_path / "val" / "n\n4").mkdir()
    with pytest.raises(UserError, match="cannot be the name of a class"):
        class_folder(tmp_path, "val")
    (tmp_path / "val" / "n\n4").rmdir()
    for split, said in (("vol", "there: test, train, val"), ("test", "a folder per class")):
        with pytest.raises(UserError, match=said):
            class_folder(tmp_path, split)


def test_drawn_scenes_have_the_class_of_most_pixels():
    config = vits_imagenet.get_config()
    config.data.update(name="shape_classes", size=(32, 32))
    source = build.make_source(config, "test")
    scene = source.scenes[3]["label"]
    counts = [(scene == k).sum() for k in range(4)]
    assert source[3]["label"] == np.argmax(counts) and len(source.classes) == 4


class Tiny(imagenet2012.Imagenet2012, skip_registration=True):
    name = "imagenet2012"
    CLASSES = make_classes(["n01440764", "n01443537"])
    COUNTS = {"train": 3, "validation": 2}

    @staticmethod
    def validation_classes():
        return ("n01443537", "n01440764")


def tar(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()


def imagenet(folder: pathlib.Path, count: int = 2) -> None:
    """The two archives: of the training images one per class inside."""
    folder.mkdir()
    of_class = {f"n01440764_{i}.JPEG": encode(photo(i)) for i in range(count)}
    train = {
        "n01440764.tar": tar(of_class),
        "n01443537.tar": tar({"a.JPEG": encode(photo(9), "PNG")}),
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(train))
    val = {f"ILSVRC2012_val_0000000{i}.JPEG": encode(photo(20 + i)) for i in (2, 1)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(val))


def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    monkeypatch.setitem(builders.BUILDERS, "imagenet2012", Tiny)
    imagenet(tmp_path / "archives")
    builders.prepare("imagenet2012", tmp_path / "archives", tmp_path / "root")
    source = builders.source("imagenet2012", tmp_path / "root", "train")
    found = {source[i]["name"]: source[i] for i in range(len(source))}
    assert {n: int(s["label"]) for n, s in found.items()} == {
        "n01440764_0.JPEG": 0, "n01440764_1.JPEG": 0, "a.JPEG": 1,
    }  # fmt: skip
    assert found["a.JPEG"]["label"].dtype == np.int32
    assert abs(found["a.JPEG"]["image"].astype(int) - photo(9)).mean() < 8  # a PNG became a JPEG
    val = builders.source("imagenet2012", tmp_path / "root", "validation")
    labels = {val[i]["name"]: int(val[i]["label"]) for i in range(2)}
    assert labels == {"ILSVRC2012_val_00000001.JPEG": 1, "ILSVRC2012_val_00000002.JPEG": 0}
    info = json.loads((tmp_path / "root/imagenet2012/5.1.0/features.json").read_text())
    assert set(info["featuresDict"]["features"]) == {"image", "label", "file_name"}


def test_an_incomplete_imagenet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(builders.BUILDERS, "imagenet2012", Tiny)
    imagenet(tmp_path / "archives", count=1)
    with pytest.raises(UserError, match="holds 2 images of train, expected 3"):
        builders.prepare("imagenet2012", tmp_path / "archives", tmp_path / "root")
    assert not (tmp_path / "root/imagenet2012/5.1.0").exists()
    (tmp_path / "archives/ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(UserError, match="no ILSVRC2012_img_val.zip"):
        builders.prepare("imagenet2012", tmp_path / "archives", tmp_path / "root")


def test_imagenet_has_the_classes_of_a_folder_per_class():
    names = imagenet2012.Imagenet2012.CLASSES.names
    assert len(names) == 1000 and list(names) == sorted(names)
    classes = imagenet2012.Imagenet2012.validation_classes()
    assert len(classes) == 50_000 and set(classes) == set(names)


# --- transforms


@pytest.mark.parametrize(
    ("size", "corner"),
    [
        ((375, 500), (16, 58)),
        ((500, 333), (80, 16)),
        ((256, 256), (16, 16)),
        ((30, 300), (16, 1168)),
    ],
)
def test_centre_crop_is_torchvisions(size, corner):
    """Resize(256, bicubic) and CenterCrop(224) of a PIL image; ``corner`` by its formulas."""
    image = photo(0, size)
    short = min(size)
    tall, wide = (256 if n == short else int(256 * n / short) for n in size)
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
    expected = resized[corner[0] : corner[0] + 224, corner[1] : corner[1] + 224]
    ours = class_transforms.centre_crop(image, (224, 224), 0.875)
    np.testing.assert_array_equal(ours, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_random_crop_lies_inside(height, width, seed):
    image = np.arange(height * width).reshape(height, width, 1)
    crop = class_transforms.random_crop(image, (0.08, 1.0), np.random.default_rng(seed))
    h, w = crop.shape[:2]
    assert h >= 1 and w >= 1
    top, left = divmod(int(crop[0, 0, 0]), width)
    np.testing.assert_array_equal(crop, image[top : top + h, left : left + w])
    if min(height, width) >= 30 and max(height, width) <= 40:
        assert 0.06 * height * width <= h * w and 0.7 <= w / h <= 1.43


def batch_of(recipe: ClassRecipe) -> dict:
    label = np.full((4, 3), recipe.smoothing / 3, np.float32)
    label[np.arange(4), [0, 1, 2, 0]] += 1 - recipe.smoothing
    image = np.broadcast_to(np.float32([1, 2, 3, 4])[:, None, None, None], (4, 8, 10, 3))
    return {"image": np.ascontiguousarray(image), "label": label}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_pixels_are(kind):
    recipe = ClassRecipe(3, (8, 10), smoothing=0.1, **{kind: 1.0})
    batch, shares = batch_of(recipe), []
    for seed in range(8):
        mixed = recipe.batch(batch, np.random.default_rng(seed))
        share = (mixed["image"].mean((1, 2, 3)) - [4, 3, 2, 1]) / [-3, -1, 1, 3]
        np.testing.assert_allclose(share, share[0], atol=1e-5)
        expected = share[0] * batch["label"] + (1 - share[0]) * batch["label"][::-1]
        np.testing.assert_allclose(mixed["label"], expected, atol=1e-5)
        assert mixed["image"].dtype == mixed["label"].dtype == np.float32
        values = len(np.unique(mixed["image"][0]))
        assert values == 1 if kind == "mixup" else values <= 2
        shares.append(share[0])
    assert np.ptp(shares) > 0.2 and 0 <= min(shares) <= max(shares) <= 1
    np.testing.assert_array_equal(batch["image"], batch_of(recipe)["image"])


def test_both_kinds_of_mixing_take_turns_and_none_leaves_the_batch():
    recipe = ClassRecipe(3, (8, 10), mixup=0.8, cutmix=1.0)
    rngs = (np.random.default_rng(seed) for seed in range(40))
    found = [np.unique(recipe.batch(batch_of(recipe), rng)["image"][0]) for rng in rngs]
    cut = sum(set(values) <= {1.0, 4.0} for values in found)
    assert 8 < cut < 32
    plain = ClassRecipe(3, (8, 10))
    assert plain.batch(batch_of(plain), np.random.default_rng(0)) is not None
    sample = {"image": photo(1), "label": np.int32(2), "name": "x"}
    made = plain.sample(sample, np.random.default_rng(0))
    assert made["image"].shape == (8, 10, 3) and made["image"].dtype == np.float32
    np.testing.assert_allclose(made["label"], [0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3], atol=1e-6)
