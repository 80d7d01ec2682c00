"""Builders on tiny archives laid out as the real ones; every refusal; reading what was stored."""

import io
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from tensorflow_datasets.core.utils import gcs_utils

from jaxseg.data import builders
from jaxseg.data.builders import ade20k, coco_stuff10k, examples, pascal_context
from jaxseg.errors import UserError

SIZE = (13, 16)  # 208 pixels: room for every label number


class TinyAde20k(ade20k.Ade20k, skip_registration=True):
    name = "ade20k"
    COUNTS = {"train": 10, "validation": 2}


class TinyPascalContext(pascal_context.PascalContext, skip_registration=True):
    name = "pascal_context"
    COUNTS = {"train": 3, "validation": 2}


class TinyCocoStuff10k(coco_stuff10k.CocoStuff10k, skip_registration=True):
    name = "coco_stuff10k"
    COUNTS = {"train": 3, "test": 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for builder in (TinyAde20k, TinyPascalContext, TinyCocoStuff10k):
        monkeypatch.setitem(builders.BUILDERS, builder.name, builder)


def encode(array, file_format="PNG", **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    with io.BytesIO() as buffer:
        image.save(buffer, format=file_format, **options)
        return buffer.getvalue()


def mat(**fields):
    with io.BytesIO() as buffer:
        scipy.io.savemat(buffer, fields, do_compression=True)
        return buffer.getvalue()


def every(numbers, dtype=np.uint8):
    """A label that holds each of ``numbers``, then the last one."""
    numbers = list(numbers)
    return np.array(numbers + numbers[-1:] * (208 - len(numbers)), dtype).reshape(SIZE)


def photo(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def ade_members():
    members = {"ADEChallengeData2016/objectInfo150.txt": b"Idx\tRatio"}
    for split, folder, count in (("train", "training", 10), ("val", "validation", 2)):
        for i in range(1, count + 1):
            name = f"{folder}/ADE_{split}_{i:08}"
            members[f"ADEChallengeData2016/images/{name}.jpg"] = encode(photo(i), "JPEG")
            label = encode(every(range(151)))
            members[f"ADEChallengeData2016/annotations/{name}.png"] = label
    return members


def pascal_members():
    lists = {"train": ("2008_000002", "2008_000003", "2008_000007"), "val": ("2008_000008", "a")}
    members = {"VOC2010/JPEGImages/2009_unlisted.jpg": encode(photo(99), "JPEG")}
    for split, names in lists.items():
        text = "".join(f"{name}\n" for name in names)
        members[f"VOC2010/ImageSets/SegmentationContext/{split}.txt"] = text.encode()
        members[f"VOC2010/ImageSets/Main/{split}.txt"] = b"2009_unlisted\n"
        for name in names:
            members[f"VOC2010/JPEGImages/{name}.jpg"] = encode(photo(len(name)), "JPEG")
            members[f"VOC2010/SegmentationClassContext/{name}.png"] = encode(every(range(60)))
    return members


COCO_IDS = [i for i in range(183) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]
COCO_NAMES = np.array([f"name{i}" for i in range(182)], object)


def coco_members():
    members = {}
    for split, numbers in (("train", (77, 94, 109)), ("test", (151, 260))):
        names = [f"COCO_train2014_{n:012}" for n in numbers]
        members[f"imageLists/{split}.txt"] = "\n".join(names).encode()
        for name in names:
            members[f"images/{name}.jpg"] = encode(photo(len(members)), "JPEG")
            label = mat(S=every(COCO_IDS, np.uint16), names=COCO_NAMES, captions=COCO_NAMES[:5])
            members[f"annotations/{name}.mat"] = label
    return members


MEMBERS = {
    "ade20k": ("ADEChallengeData2016.zip", ade_members),
    "pascal_context": ("VOC2010.zip", pascal_members),
    "coco_stuff10k": ("cocostuff-10k-v1.1.zip", coco_members),
}
ADE_IMAGE = "ADEChallengeData2016/images/training/ADE_train_00000003.jpg"
ADE_LABEL = "ADEChallengeData2016/annotations/training/ADE_train_00000003.png"
VOC_LABEL = "VOC2010/SegmentationClassContext/2008_000003.png"
COCO_IMAGE = "images/COCO_train2014_000000000094.jpg"
COCO_LABEL = "annotations/COCO_train2014_000000000094.mat"


def write_zip(folder, name, change=lambda members: None):
    """The archive of data set ``name`` in ``folder``, after ``change`` edited its members."""
    file, make = MEMBERS[name]
    members = make()
    change(members)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return folder / file


def prepared(tmp_path, name, split, change=lambda members: None):
    write_zip(tmp_path / "archives", name, change)
    builders.prepare(name, tmp_path / "archives", tmp_path / "root")
    return builders.source(name, tmp_path / "root", split)


# The published facts.


@pytest.mark.parametrize(
    ("builder", "count", "splits"),
    [
        (ade20k.Ade20k, 150, {"train": 20210, "validation": 2000}),
        (pascal_context.PascalContext, 59, {"train": 4996, "validation": 5104}),
        (coco_stuff10k.CocoStuff10k, 171, {"train": 9000, "test": 1000}),
    ],
)
def test_published_counts(builder, count, splits):
    assert builder.COUNTS == splits
    assert len(builder.CLASSES) == len(set(builder.CLASSES.names)) == len(builder.LABEL_IDS)
    assert len(builder.CLASSES) == count
    assert all(re.fullmatch(r"[a-z]+([ -][a-z]+)*", name) for name in builder.CLASSES.names)


@pytest.mark.parametrize(
    ("builder", "by_label"),
    [
        (ade20k.Ade20k, {1: "wall", 8: "bed", 13: "person", 21: "car", 76: "swivel chair"}),
        (ade20k.Ade20k, {99: "bottle", 137: "traffic light", 142: "crt screen", 150: "flag"}),
        (pascal_context.PascalContext, {1: "aeroplane", 2: "bag", 37: "person", 50: "table"}),
        (coco_stuff10k.CocoStuff10k, {1: "person", 11: "fire hydrant", 13: "stop sign"}),
        (coco_stuff10k.CocoStuff10k, {27: "backpack", 44: "bottle", 67: "dining table", 72: "tv"}),
        (coco_stuff10k.CocoStuff10k, {90: "toothbrush", 92: "banner", 157: "sky-other"}),
        (coco_stuff10k.CocoStuff10k, {148: "river", 169: "tree", 182: "wood"}),
    ],
)
def test_class_names_by_label_number(builder, by_label):
    names = dict(zip(builder.LABEL_IDS, builder.CLASSES.names, strict=True))
    assert {label: names[label] for label in by_label} == by_label


def test_alphabetical_class_lists():
    pascal = pascal_context.PascalContext.CLASSES.names
    stuff = coco_stuff10k.CocoStuff10k.CLASSES.names[80:]
    assert list(pascal) == sorted(pascal)
    assert list(stuff) == sorted(stuff)


def test_coco_label_numbers_as_in_the_published_conversion():
    # Pairs (label in the archive, 1-based class) from the conversion table of mmsegmentation.
    table = "1 1, 11 11, 13 12, 25 24, 27 25, 28 26, 31 27, 44 40, 46 41, 65 60, 67 61, 70 62"
    table += ", 72 63, 82 73, 84 74, 90 80, 92 81, 182 171"
    for label, class_number in (map(int, row.split()) for row in table.split(",")):
        assert coco_stuff10k.CocoStuff10k.LABEL_IDS[class_number - 1] == label


# What is stored is what the archive holds.


@pytest.mark.parametrize(
    ("name", "split", "classes"),
    [
        ("ade20k", "train", 150),
        ("pascal_context", "validation", 59),
        ("coco_stuff10k", "test", 171),
    ],
)
def test_every_label_number_becomes_its_train_id(tmp_path, name, split, classes):
    source = prepared(tmp_path, name, split)
    for sample in source:
        assert sample["label"].dtype == sample["image"].dtype == np.uint8
        assert sample["label"].shape == SIZE and sample["image"].shape == (*SIZE, 3)
        np.testing.assert_array_equal(
            sample["label"].ravel()[: classes + 1], [255, *range(classes)]
        )
        assert sample["label"].flags.writeable and sample["image"].flags.writeable
    assert len(source.classes) == classes
    assert source.classes is builders.BUILDERS[name].CLASSES


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_matlab_label_maps_of_any_number_type(dtype):
    label = mat(S=every(COCO_IDS, dtype))
    stored = TinyCocoStuff10k.stored_label(None, label, "x")
    ids = examples.train_ids(stored, TinyCocoStuff10k.LABEL_IDS, "x")
    np.testing.assert_array_equal(ids.ravel()[:172], [255, *range(171)])


def test_palette_labels_keep_their_numbers(tmp_path):
    def change(members):
        image = Image.fromarray(every(range(60))).convert("P")
        image.putdata(every(range(60)).ravel().tolist())
        image.putpalette([7, 200, 3] * 256)
        members[VOC_LABEL] = encode(image)

    labels = {s["name"]: s["label"] for s in prepared(tmp_path, "pascal_context", "train", change)}
    np.testing.assert_array_equal(labels["2008_000003"].ravel()[:60], [255, *range(59)])


def test_names_and_pictures_stay_together(tmp_path):
    source = prepared(tmp_path, "ade20k", "train")
    names = [sample["name"] for sample in source]
    assert sorted(names) == [f"ADE_train_{i:08}" for i in range(1, 11)]
    members = ade_members()
    for sample in source:
        member = f"ADEChallengeData2016/images/training/{sample['name']}.jpg"
        with Image.open(io.BytesIO(members[member])) as image:
            np.testing.assert_array_equal(sample["image"], np.asarray(image))


def test_stored_features_are_one_channel_and_three(tmp_path):
    source = prepared(tmp_path, "ade20k", "train")
    record = source.records[0]
    with Image.open(io.BytesIO(record["label"])) as label:
        assert (label.format, label.mode) == ("PNG", "L")
    assert record["image"] in set(ade_members().values())  # the bytes themselves


@pytest.mark.parametrize("mode", ["L", "CMYK", "PNG", "turned"])
def test_unusual_pictures_become_upright_rgb(mode):
    flat = np.zeros((8, 24, 3), np.uint8)
    flat[:, 12:] = (200, 100, 50)
    image, expected = Image.fromarray(flat), flat
    if mode == "L":
        data = encode(image.convert("L"), "JPEG", quality=95)
        expected = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
        assert examples.jpeg(data, "x")[0] == data
    elif mode == "CMYK":
        data = encode(image.convert("CMYK"), "JPEG", quality=95)
    elif mode == "PNG":
        data = encode(image)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn clockwise by 90 degrees to see it upright
        data = encode(image, "JPEG", quality=95, exif=exif)
        expected = np.rot90(flat, -1)
    stored, size = examples.jpeg(data, "x")
    decoded = examples.decode(stored, "RGB").astype(int)
    assert size == decoded.shape[:2] == expected.shape[:2]
    assert abs(decoded - expected).max() < 40  # the compression rings at the edge
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "JPEG" and image.mode in ("L", "RGB")


# Forms of an archive.


def write_folder(folder, members):
    for member, data in members.items():
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_bytes(data)


@pytest.mark.parametrize("form", ["tar", "folder", "devkit", "linked", "flat", "deep"])
def test_forms_of_archive(tmp_path, form):
    archives = tmp_path / "archives"
    archives.mkdir()
    members = pascal_members()
    if form == "tar":
        with tarfile.open(archives / "VOC2010.tar", "w") as tar:
            for member, data in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    elif form == "folder":
        write_folder(archives, members)
    elif form == "devkit":
        write_folder(archives / "VOCdevkit", members)
    elif form == "linked":
        write_folder(tmp_path / "elsewhere", members)
        (archives / "VOC2010").mkdir()
        for part in (tmp_path / "elsewhere" / "VOC2010").iterdir():
            (archives / "VOC2010" / part.name).symlink_to(part)
    else:
        prefix = {"flat": "", "deep": "a/b/"}[form]
        members = {prefix + member.removeprefix("VOC2010/"): d for member, d in members.items()}
        with zipfile.ZipFile(archives / "VOC2010.zip", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    builders.prepare("pascal_context", archives, tmp_path / "root")
    assert len(builders.source("pascal_context", tmp_path / "root", "train")) == 3
    assert len(builders.source("pascal_context", tmp_path / "root", "validation")) == 2


def test_foreign_members_are_ignored_and_no_name_becomes_a_path(tmp_path):
    def change(members):
        members["../../escaped.txt"] = b"x"
        members[str(tmp_path / "absolute.txt")] = b"x"
        members["__MACOSX/images/training/._ADE_train_00000001.jpg"] = b"what macOS adds"

    prepared(tmp_path, "ade20k", "train", change)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert not any("escaped" in file or "absolute" in file for file in files)
    assert len(files) == 1 + 2 + 2  # the zip; two splits; features.json and dataset_info.json
    assert not (tmp_path.parent / "escaped.txt").exists()


# Refusals.


def grey_4_bit():
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 4, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12" * (SIZE[1] // 2)) * SIZE[0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def put(member, data):
    return lambda members: members.update({member: data})


def drop(*wanted):
    return lambda members: [members.pop(m) for m in list(members) if any(w in m for w in wanted)]


def rename(old, new):
    def change(members):
        for member in list(members):
            members[member.replace(old, new)] = members.pop(member)

    return change


REFUSALS = {
    "too few": ("ade20k", drop("ADE_train_00000003"), "holds 9 .* train, expected 10"),
    "too few val": ("ade20k", drop("ADE_val_00000002"), "holds 1 .*validation, expected 2"),
    "no label": ("ade20k", drop(ADE_LABEL), "1 of 10 files have no label .*00000003.jpg"),
    "no image": ("ade20k", drop(ADE_IMAGE), "1 of 10 files have no image .*00000003.png"),
    "above": ("ade20k", put(ADE_LABEL, encode(every([0, 1, 151]))), r"151 at row 0, column 2.*150"),
    "255": ("pascal_context", put(VOC_LABEL, encode(every([255, 0]))), "label value 255"),
    "60": ("pascal_context", put(VOC_LABEL, encode(every([60]))), r"000003.png: label value 60"),
    "rgb": ("ade20k", put(ADE_LABEL, encode(photo(0))), "mode RGB .*instance maps"),
    "16 bit": ("ade20k", put(ADE_LABEL, encode(every([1], np.uint16))), "mode I;16"),
    "4 bit": ("ade20k", put(ADE_LABEL, grey_4_bit()), "label is a PNG of mode L .*L;4"),
    "jpeg label": ("ade20k", put(ADE_LABEL, encode(every([1]), "JPEG")), "label is a JPEG"),
    "gif label": ("ade20k", put(ADE_LABEL, encode(every([1]), "GIF")), "label is a GIF"),
    "text label": ("ade20k", put(ADE_LABEL, b"<html>"), "cannot read this label"),
    "cut label": ("ade20k", put(ADE_LABEL, encode(photo(0)[..., 0])[:-40]), "read this label"),
    "size": ("ade20k", put(ADE_LABEL, encode(np.ones((5, 6), np.uint8))), "5x6 but .* 13x16"),
    "cut image": ("ade20k", put(ADE_IMAGE, encode(photo(1), "JPEG")[:500]), "read this image"),
    "empty image": ("ade20k", put(ADE_IMAGE, b""), "00000003.jpg: cannot read this image"),
    "instances": ("ade20k", rename("annotations", "annotations_instance"), "instance maps of 100"),
    "two folders": ("ade20k", put(f"copy/{ADE_IMAGE}", b""), "holds both .* and copy/"),
    "no list": ("pascal_context", drop("Context/val.txt"), "no ImageSets/.*/val.txt"),
    "twice": (
        "pascal_context",
        put("VOC2010/ImageSets/SegmentationContext/val.txt", b"a\na\n"),
        "repeats a name",
    ),
    "listed image": ("pascal_context", drop("2008_000003.jpg"), "1 listed names have no image"),
    "listed mask": ("pascal_context", drop(VOC_LABEL), "1 listed names have no mask .2008_000003"),
    "original lists": (
        "pascal_context",
        put("VOC2010/ImageSets/SegmentationContext/val.txt", b"2008_000008\n"),
        "holds 1 examples of pascal_context validation, expected 2",
    ),
    "coco listed": ("coco_stuff10k", drop(COCO_IMAGE, COCO_LABEL), "1 listed names have no image"),
    "coco no label": ("coco_stuff10k", drop(COCO_LABEL), "1 of 5 files have no label"),
    "coco no image": ("coco_stuff10k", drop(COCO_IMAGE), "1 of 5 files have no image"),
    "coco no list": ("coco_stuff10k", drop("test.txt"), "no imageLists/test.txt"),
    "coco 12": ("coco_stuff10k", put(COCO_LABEL, mat(S=every([12]))), "094.mat: label value 12 "),
    "coco 183": ("coco_stuff10k", put(COCO_LABEL, mat(S=every([183]))), "label value 183 "),
    "coco 438": (
        "coco_stuff10k",
        put(COCO_LABEL, mat(S=every([438], np.uint16))),
        "label value 438 ",
    ),
    "coco -200": ("coco_stuff10k", put(COCO_LABEL, mat(S=every([-200], np.int16))), "value -200"),
    "coco half": ("coco_stuff10k", put(COCO_LABEL, mat(S=every([1.5], float))), "value 1.5 "),
    "coco nan": ("coco_stuff10k", put(COCO_LABEL, mat(S=every([np.nan], float))), "value nan "),
    "coco no S": ("coco_stuff10k", put(COCO_LABEL, mat(T=every([1]))), "no label map S"),
    "coco text S": ("coco_stuff10k", put(COCO_LABEL, mat(S="abc")), "no label map S"),
    "coco cells": ("coco_stuff10k", put(COCO_LABEL, mat(S=COCO_NAMES.reshape(13, 14))), "map S"),
    "coco 3D": ("coco_stuff10k", put(COCO_LABEL, mat(S=photo(0))), "no label map S"),
    "coco cut": ("coco_stuff10k", put(COCO_LABEL, coco_members()[COCO_LABEL][:150]), "read this M"),
    "coco HDF5": ("coco_stuff10k", put(COCO_LABEL, b"\x89HDF\r\n\x1a\n" + b"\0" * 600), "MATLAB"),
    "coco v1.0": (
        "coco_stuff10k",
        put(COCO_LABEL, mat(S=every([1, 172]), names=COCO_NAMES[:172])),
        "labels of v1.0",
    ),
}


def assert_refused(tmp_path, name, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        builders.prepare(name, tmp_path / "archives", tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "archives") in str(caught.value)
    with pytest.raises(UserError, match="not prepared"):
        builders.source(name, tmp_path / "root", "train")
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_leave_nothing_behind(tmp_path, case):
    name, change, pattern = REFUSALS[case]
    write_zip(tmp_path / "archives", name, change)
    assert_refused(tmp_path, name, pattern)


def test_refuses_a_damaged_zip(tmp_path):
    path = write_zip(tmp_path / "archives", "ade20k")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path, "ade20k", "not a readable zip")
    at = whole.index(ade_members()[ADE_LABEL]) + 60
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert_refused(tmp_path, "ade20k", "cannot read .*png .*CRC")
    path.write_bytes(b"<html>not found</html>")
    assert_refused(tmp_path, "ade20k", "not a readable zip")


def test_refuses_a_compressed_or_damaged_tar(tmp_path):
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "VOC2010.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    assert_refused(tmp_path, "pascal_context", "uncompressed tar")


def test_refuses_a_missing_archive(tmp_path):
    assert_refused(tmp_path, "ade20k", "no ADEChallengeData2016.zip, .* or the folder")
    (tmp_path / "archives").mkdir()
    assert_refused(tmp_path, "coco_stuff10k", "no cocostuff-10k-v1.1.zip.*docs/datasets.md")


def test_the_real_counts_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(builders.BUILDERS, "ade20k", ade20k.Ade20k)
    write_zip(tmp_path / "archives", "ade20k")
    assert_refused(tmp_path, "ade20k", "holds 10 examples of ade20k train, expected 20210")


def test_refuses_unknown_names_and_splits(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'ade': .*ade20k, pascal_context"):
        builders.source("ade", tmp_path, "train")
    with pytest.raises(UserError, match="prepare_data --name=ade20k --archives=DIR --root="):
        builders.source("ade20k", tmp_path, "train")
    prepared(tmp_path, "ade20k", "train")
    for split in ("val", "train[:x]", "train[:11]", "", "train[:10"):
        with pytest.raises(UserError, match=r"it has train, validation") as caught:
            builders.source("ade20k", tmp_path / "root", split)
        assert "\n" not in str(caught.value)


# Preparing again, reading.


def test_a_later_run_mends_a_failed_one_and_keeps_a_good_one(tmp_path):
    write_zip(tmp_path / "archives", "ade20k", put(ADE_LABEL, encode(every([200]))))
    assert_refused(tmp_path, "ade20k", "label value 200")
    killed = tmp_path / "root" / "ade20k" / "incomplete.ABCDEF_1.0.0"  # as SIGKILL leaves it
    killed.mkdir(parents=True)
    (killed / "ade20k-train.array_record-00000-of-00001").write_bytes(b"half")
    source = prepared(tmp_path, "ade20k", "train")
    assert len(source) == 10 and not killed.exists()
    first = [sample["name"] for sample in source]
    (tmp_path / "archives" / "ADEChallengeData2016.zip").unlink()
    builders.prepare("ade20k", tmp_path / "archives", tmp_path / "root")
    again = builders.source("ade20k", tmp_path / "root", "train")
    assert [sample["name"] for sample in again] == first


def test_an_exception_of_any_kind_leaves_no_data_set(tmp_path, monkeypatch):
    write_zip(tmp_path / "archives", "ade20k")

    def interrupt(label):
        raise KeyboardInterrupt

    monkeypatch.setattr(examples, "png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        builders.prepare("ade20k", tmp_path / "archives", tmp_path / "root")
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []


def test_random_access(tmp_path):
    source = prepared(tmp_path, "ade20k", "train")
    names = [sample["name"] for sample in source]
    assert len(source) == len(names) == 10
    assert [source[i]["name"] for i in (9, 0, -1)] == [names[9], names[0], names[9]]
    for index in (10, -11):
        with pytest.raises(IndexError):
            source[index]


def test_slices_and_sums_of_splits(tmp_path):
    names = [sample["name"] for sample in prepared(tmp_path, "ade20k", "train")]

    def read(split):
        return [s["name"] for s in builders.source("ade20k", tmp_path / "root", split)]

    assert read("train[:10%]") == names[:1]
    assert read("train[30%:]") == names[3:]
    assert read("train[2:5]") == names[2:5]
    assert len(read("train[:2]+validation")) == 4
    assert names != sorted(names)  # shuffled once, so that a slice is a random part


def test_pickling_keeps_the_samples(tmp_path):
    source = prepared(tmp_path, "ade20k", "train[3:]")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 7 and copy.classes == source.classes
    for i in range(7):
        np.testing.assert_equal(copy[i], source[i])


def test_tensorflow_is_never_imported(tmp_path):
    write_zip(tmp_path / "archives", "coco_stuff10k")
    code = f"""
import sys
from jaxseg.data import builders
class Tiny(builders.CocoStuff10k, skip_registration=True):
    name = "coco_stuff10k"
    COUNTS = {{"train": 3, "test": 2}}
builders.BUILDERS["coco_stuff10k"] = Tiny
builders.prepare("coco_stuff10k", {str(tmp_path / "archives")!r}, {str(tmp_path / "root")!r})
source = builders.source("coco_stuff10k", {str(tmp_path / "root")!r}, "train")
assert sum(sample["image"].shape[2] for sample in source) == 9
assert not [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "torch")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_no_server_is_asked_and_no_temporary_folder_stays(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(gcs_utils, "gcs_dataset_info_files", pytest.fail)
    prepared(tmp_path, "ade20k", "train")
    assert list(temporary.iterdir()) == []


def test_command_line_says_one_line(tmp_path):
    write_zip(tmp_path, "ade20k")
    command = [sys.executable, "-m", "jaxseg.tools.prepare_data", "--name=ade20k"]
    command += [f"--archives={tmp_path}", f"--root={tmp_path / 'root'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "expected 20210" in done.stderr and "Traceback" not in done.stderr


def test_no_file_stays_open(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        prepared(tmp_path, "pascal_context", "train")
        write_zip(tmp_path / "archives", "ade20k", put(ADE_LABEL, b""))
        with pytest.raises(UserError):
            builders.prepare("ade20k", tmp_path / "archives", tmp_path / "root")
