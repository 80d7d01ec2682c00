"""Folder data sets: what is read, and that every fault names its file and its mend."""

import pathlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.folder import folder
from jaxseg.data.images import read_image, read_label
from jaxseg.errors import UserError

CLASSES = "0\troad\t10,20,30\n1\tsky\n3\ttraffic light\t1,2,3\n4 void\n"
SHARED = pathlib.Path(__file__).parents[1].parent / "shared" / "data"


def add(root, split, stem, label=None, image=None, suffix=".png"):
    """Writes one pair; grey picture and 4x6 label of values 0, 1 unless given."""
    label = np.tile(np.uint8([0, 1]), (4, 3)) if label is None else label
    image = np.full((*label.shape[:2], 3), 9, np.uint8) if image is None else image
    for part, array, end in (("images", image, suffix), ("labels", label, ".png")):
        (root / part / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / part / split / f"{stem}{end}")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "my data é"
    for split, stems in (("train", ("a1", "a2", "b1")), ("val", ("a1", "c1"))):
        for stem in stems:
            add(root, split, stem)
    (root / "classes.txt").write_text(CLASSES, encoding="utf-8")
    return root


def refuses(call, *expected):
    with pytest.raises(UserError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for part in expected:
        assert str(part) in message, message


def test_classes_and_train_ids(root):
    values = np.uint8([[0, 1, 3], [4, 255, 3]])
    add(root, "test", "x", label=values)
    source = folder(root, "test")
    assert source.classes.names == ("road", "sky", "traffic light", "void")
    assert source.classes.colours[0] == (10, 20, 30) and source.classes.colours[2] == (1, 2, 3)
    sample = source[0]
    assert sample["name"] == "test/x" and sample["label"].dtype == np.uint8
    assert sample["label"].tolist() == [[0, 1, 2], [3, 255, 2]]
    source = folder(root, "test", ignore=("sky", "void"))
    assert source.classes.names == ("road", "traffic light")
    assert source[0]["label"].tolist() == [[0, 255, 1], [255, 255, 1]]


def test_ignoring_class_zero_equals_mmseg_reduce_zero_label(tmp_path):
    with np.load(pathlib.Path(__file__).parent / "golden" / "preprocess.npz") as stored:
        raw, expected = stored["raw_label"], stored["reduce_zero_label"]
    add(tmp_path, "val", "x", label=raw)
    (tmp_path / "classes.txt").write_text("\n".join(f"{i} class{i}" for i in range(9)))
    np.testing.assert_array_equal(folder(tmp_path, "val", ("class0",))[0]["label"], expected)


def test_order_of_lines_does_not_matter(root):
    (root / "classes.txt").write_text("\n".join(reversed(CLASSES.splitlines())))
    assert folder(root, "train").classes.names == ("road", "sky", "traffic light", "void")


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train/a1", "train/a2", "train/b1"]),
        ("train+val", ["train/a1", "train/a2", "train/b1", "val/a1", "val/c1"]),
        ("train/a*", ["train/a1", "train/a2"]),
        ("train/!a*", ["train/b1"]),
        ("train/!a1+val/c?", ["train/a2", "train/b1", "val/c1"]),
        ("train/a*+train/*1", ["train/a1", "train/a2", "train/b1"]),  # no example twice
    ],
)
def test_split_language(root, split, names):
    source = folder(root, split)
    assert [name for name, _, _ in source.files] == names and len(source) == len(names)


def test_split_errors(root):
    refuses(lambda: folder(root, "train/z*"), "train/z*", "selects no file")
    refuses(lambda: folder(root, "trian"), "trian", "train, val")
    refuses(lambda: folder(root, "train+"), "data split ''")


def test_source_can_be_pickled(root):
    source = folder(root, "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["label"], source[1]["label"])
    assert copy.classes == source.classes


def test_opening_reads_no_picture(root):
    for path in root.rglob("*.png"):
        path.write_bytes(b"not a picture")
    assert len(folder(root, "train+val")) == 5


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_missing_folders(root, missing):
    (root / missing).rename(root / "gone")
    refuses(lambda: folder(root, "train"), root / missing, "no such folder", "classes.txt")
    refuses(lambda: folder(root / "nowhere", "train"), root / "nowhere", "config.data.root")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 a\nroad\n", "line 2 'road'"),
        ("0 a\n300 b\n", "line 2 '300 b' has a number above 255"),
        ("0 a\n\n0 b\n", "line 3 '0 b' repeats"),
        ("0 a\n1 a\n", "line 2 '1 a' repeats"),
        ("0 a 1,2,256\n", "line 1 '0 a 1,2,256' has a number above 255"),
        ("0\ta\t1,2,3,4\n", "line 1 '0\\ta\\t1,2,3,4' is not"),  # else all of it is the name
        ("0 a\x1b[31mb\n", "line 1 '0 a\\x1b[31mb' is not"),
        ("0 a\0b\n", "line 1 '0 a\\x00b' is not"),
        ("9" * 5000 + " a\n", "line 1 '999"),  # int() takes 4300 digits
        ("0 a\n1 a" + " " * 300_000 + "b\n", "line 2 '1 a"),  # minutes for the pattern
        ("\n", "holds no class"),
        ("255 void\n", "every class is ignored"),
    ],
)
def test_malformed_classes_file(root, text, expected):
    (root / "classes.txt").write_text(text)
    refuses(lambda: folder(root, "train"), root / "classes.txt", expected)


def test_missing_classes_file_and_unknown_ignore(root):
    refuses(lambda: folder(root, "train", ("trafic light",)), "'trafic light'", "'traffic light'")
    (root / "classes.txt").unlink()
    refuses(lambda: folder(root, "train"), root / "classes.txt", "index<TAB>name")


def test_unpaired_files_both_ways(root):
    for stem in "pqrstuv":
        Image.new("RGB", (2, 2)).save(root / "images" / "train" / f"{stem}.jpg")
    refuses(
        lambda: folder(root, "train"),
        "7 of 10 files in images/train without a label (p.jpg, q.jpg, r.jpg, s.jpg, t.jpg, ...)",
    )
    (root / "images" / "val" / "c1.png").unlink()
    refuses(lambda: folder(root, "val"), "1 of 2 files in labels/val without an image (c1.png)")


def test_same_stem_twice(root):
    Image.new("RGB", (2, 2)).save(root / "images" / "train" / "a1.jpg")
    refuses(lambda: folder(root, "train"), "a1.png", "a1.jpg", "remove one")


def test_unknown_label_value(root):
    label = np.zeros((4, 6), np.uint8)
    label[2, 3:5] = 7
    add(root, "test", "x", label=label)
    refuses(lambda: folder(root, "test")[0], "test/x.png", "value 7", "row 2, column 3", "2 pixels")


def test_label_formats(root):
    path = root / "label.png"
    indices = np.uint8([[0, 1, 3], [2, 3, 0]])
    palette = Image.fromarray(indices)
    palette = palette.convert("P")
    palette.putdata(indices.ravel().tolist())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(path, bits=2)
    np.testing.assert_array_equal(read_label(path), indices)
    path.write_bytes(grey_png_of_4_bits([[0, 1, 3], [2, 15, 0]]))
    assert read_label(path).tolist() == [[0, 1, 3], [2, 15, 0]]
    Image.fromarray(indices.astype(bool)).save(path)
    assert read_label(path).tolist() == [[0, 1, 1], [1, 1, 0]]


def grey_png_of_4_bits(rows):
    """Pillow does not write such files, and stretches their values on reading."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packed = [bytes([0, (r[0] << 4) | r[1], r[2] << 4]) for r in rows]
    header = struct.pack(">IIBBBBB", 3, len(rows), 4, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(packed)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def test_labels_that_are_not_index_pictures(tmp_path):
    path = tmp_path / "label.png"
    Image.new("RGB", (3, 2)).save(path)
    refuses(lambda: read_label(path), path, "RGB", "single-channel PNG")
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(path)
    refuses(lambda: read_label(path), path, "I;16")
    Image.new("L", (3, 2)).save(path, format="JPEG")
    refuses(lambda: read_label(path), path, "JPEG", "single-channel PNG")


def test_jpeg_label_in_a_folder(root):
    png = root / "labels" / "train" / "a1.png"
    Image.new("L", (6, 4)).save(png.with_suffix(".jpg"))
    refuses(lambda: folder(root, "train"), "a1.png", "a1.jpg", "remove one")
    png.unlink()
    refuses(lambda: folder(root, "train")[0], png.with_suffix(".jpg"), "single-channel PNG")


def test_sizes_differ(root):
    add(root, "test", "x", image=np.zeros((5, 6, 3), np.uint8))
    refuses(lambda: folder(root, "test")[0], "labels/test/x.png", "4x6", "5x6", "nearest")


def test_exif_turn_applies_to_the_image(root):
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to show
    add(root, "test", "x", label=np.zeros((6, 4), np.uint8), image=np.zeros((6, 4, 3), np.uint8))
    path = root / "images" / "test" / "x.png"
    Image.fromarray(image).save(path, exif=exif)
    sample = folder(root, "test")[0]
    assert sample["image"].shape == (6, 4, 3) and sample["image"][0, 3, 0] == 255
    Image.new("L", (6, 4)).save(root / "labels" / "test" / "x.png")
    refuses(lambda: folder(root, "test")[0], "4x6", "6x4", "EXIF")


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    grey = np.uint8([[0, 100, 200], [255, 7, 9]])
    three = np.repeat(grey[:, :, None], 3, axis=2)
    kinds = {
        "L.png": Image.fromarray(grey),
        "LA.png": Image.fromarray(grey).convert("LA"),
        "RGBA.png": Image.fromarray(np.dstack([three, 255 - grey])),
        "16.png": Image.fromarray(grey.astype(np.uint16) * 256 + 99),
        "P.png": Image.fromarray(grey).convert("P"),
    }
    for name, image in kinds.items():
        extra = {"transparency": b"\x00\x80"} if name == "P.png" else {}
        image.save(tmp_path / name, **extra)
        np.testing.assert_array_equal(read_image(tmp_path / name), three, err_msg=name)
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    red = read_image(tmp_path / "x.jpg")
    assert red.shape == (2, 3, 3) and red[0, 0, 0] > 240 and red[0, 0, 1] < 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_pictures(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"<html></html>"):
        path.write_bytes(content)
        refuses(lambda: read_image(path), path, "cannot read this image")
    path.unlink()
    refuses(lambda: read_image(path), path, "cannot read this image")


def test_damaged_header_and_exif(tmp_path):
    """Files on which Pillow raises errors that are no OSError."""
    path = tmp_path / "x.png"
    Image.new("RGB", (3, 2)).save(path)
    path.write_bytes(path.read_bytes().replace(b"\0\0\0\rIHDR", b"\0\0\0\x05IHDR"))
    refuses(lambda: read_image(path), path, "cannot read this image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 2)).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf")
    length = struct.unpack(">I", content[start - 4 : start])[0]
    body = b"eXIf" + b"@" + content[start + 5 : start + 4 + length]
    damaged = body + struct.pack(">I", zlib.crc32(body)) + content[start + 8 + length :]
    path.write_bytes(content[:start] + damaged)
    refuses(lambda: read_image(path), path, "cannot read this image")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    refuses(lambda: read_image(tmp_path / "x.png"), "x.png", "make it smaller")


@pytest.mark.parametrize(
    ("name", "split", "ignore", "count", "classes"),
    [
        ("camvid", "train", ("void",), 367, 11),
        ("camvid", "test/Seq05VD*", ("void",), 171, 11),
        ("camvid", "train/!0006R0*+val", ("void",), 266 + 101, 11),
        ("msrc", "train", ("void", "horse", "mountain"), 386, 21),
    ],
)
def test_real_data_sets(name, split, ignore, count, classes):
    if not (SHARED / name).is_dir():
        pytest.skip("data not here")
    source = folder(SHARED / name, split, ignore)
    assert len(source) == count and len(source.classes) == classes
    sample = source[0]
    values = np.unique(sample["label"])
    assert sample["image"].shape[:2] == sample["label"].shape
    assert len(values) > 1 and set(values) <= {*range(classes), 255}
