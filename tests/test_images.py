"""Every kind of picture that people have becomes the RGB that they see, or is refused by name."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data.images import read_image, read_label, to_eight_bits
from jaxseg.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = np.repeat(np.arange(0, 240, 8, np.uint8)[:, None], 20, axis=1)  # [30, 20]
COLOUR = np.dstack([SMOOTH, 255 - SMOOTH, SMOOTH.T.repeat(2, axis=0)[:30, :20] // 2])
DEEP = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF standard: where the 0th row and the 0th column of what is stored are to be seen."""
    turned = stored.swapaxes(0, 1) if orientation > 4 else stored
    down = orientation in (3, 4, 7, 8)
    left = orientation in (2, 3, 6, 7)
    return turned[:: -1 if down else 1, :: -1 if left else 1]


def tiff(values: np.ndarray, orientation: int = 1, end: str = "<") -> bytes:
    """An uncompressed 16-bit RGB TIFF, which Pillow cannot write."""
    height, width, channels = values.shape
    content = values.astype(f"{end}u2").tobytes()
    bits = struct.pack(f"{end}3H", 16, 16, 16)
    tags = {256: width, 257: height, 258: channels, 259: 1, 262: 2, 273: 0}
    tags |= {274: orientation, 277: channels, 278: height, 279: len(content)}
    after = 8 + 2 + 12 * len(tags) + 4
    tags[273] = after + len(bits)
    entries = b""
    for tag, value in tags.items():
        if tag == 258:
            entries += struct.pack(f"{end}HHII", tag, 3, 3, after)
        else:
            entries += struct.pack(f"{end}HHII", tag, 4, 1, value)
    head = struct.pack(f"{end}2sHI", b"II" if end == "<" else b"MM", 42, 8)
    count = struct.pack(f"{end}H", len(tags))
    return head + count + entries + bytes(4) + bits + content


def with_exif(png: bytes, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    at = png.index(b"IDAT") - 4
    return png[:at] + chunk + png[at:]


def deep_png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values[:, :, [2, 1, 0, 3][: values.shape[2]]])[1].tobytes()


def refused(path, *words) -> None:
    with pytest.raises(UserError) as error:
        read_image(path)
    assert all(str(word) in str(error.value) for word in (path, *words))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    Image.fromarray(COLOUR).save(path, exif=exif, **options.get(suffix, {}))
    expected = upright(COLOUR, orientation).astype(int)
    np.testing.assert_allclose(read_image(path), expected, atol=3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("largest", [65535, 4095])
def test_deep_pictures_are_turned_upright(tmp_path, orientation, largest):
    values = DEEP >> (0 if largest == 65535 else 4)
    (tmp_path / "x.png").write_bytes(with_exif(deep_png(values), orientation))
    (tmp_path / "x.tif").write_bytes(tiff(values, orientation))
    for name in ("x.png", "x.tif"):
        np.testing.assert_array_equal(
            read_image(tmp_path / name), upright(DEEP >> 8, orientation), err_msg=name
        )


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_camera_that_fills_fewer_bits_is_not_black(tmp_path, bits):
    values = DEEP >> (16 - bits)
    values[0, 0] = 2**bits - 1
    expected = values >> (bits - 8)
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.tif")
    (tmp_path / "rgb.png").write_bytes(deep_png(values))
    alpha = np.full((5, 7, 1), 65535, np.uint16)
    (tmp_path / "rgba.png").write_bytes(deep_png(np.concatenate([values, alpha], axis=2)))
    (tmp_path / "little.tif").write_bytes(tiff(values))
    (tmp_path / "big.tif").write_bytes(tiff(values, end=">"))
    (tmp_path / "packed.tif").write_bytes(cv2.imencode(".tif", values[..., ::-1])[1].tobytes())
    for path in tmp_path.iterdir():
        wanted = expected[..., :1].repeat(3, axis=2) if path.stem == "grey" else expected
        np.testing.assert_array_equal(read_image(path), wanted, err_msg=path.name)


def test_deep_grey_with_alpha(tmp_path):
    """Pillow gives its high bytes only, so that it must not be asked for the others."""
    pixels = np.stack([DEEP[..., 0] >> 4, DEEP[..., 1]], axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", 7, 5, 16, 4, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    (tmp_path / "x.png").write_bytes(png)
    found = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(found, (DEEP[..., :1] >> 12).repeat(3, axis=2))


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_eight_bits_keep_order_and_use_the_range(values):
    found = to_eight_bits(np.uint16(values)).astype(int)
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all() and found.min() >= 0
    assert found.max() >= min(max(values), 64)


def test_floats_and_wide_integers(tmp_path):
    unit = np.float32([[0, 0.5, 1], [0.25, 0.75, 0.1]])
    path = tmp_path / "x.tif"
    for stored, expected in ((unit, np.rint(unit * 255)), (unit * 200, np.rint(unit * 200))):
        Image.fromarray(stored).save(path)
        np.testing.assert_array_equal(read_image(path)[..., 1], expected)
    Image.fromarray(np.int32([[0, 4095], [16, 160]])).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 0], [[0, 255], [1, 10]])
    for wrong in (-unit, unit * 300, unit * np.float32(np.nan), np.int32([[70000]])):
        Image.fromarray(wrong).save(path)
        refused(path, "save them as 0..")


def test_modes(tmp_path):
    grey = Image.fromarray(SMOOTH)
    three = np.dstack([SMOOTH] * 3)
    bits = np.where(three > 99, 255, 0)
    kinds = {
        "la.png": (Image.merge("LA", (grey, grey)), three),
        "la.tif": (Image.merge("LA", (grey, grey)), three),
        "la.webp": (Image.merge("LA", (grey, grey)), three),
        "one.png": (Image.fromarray(bits[..., 0] > 0), bits),
        "one.tif": (Image.fromarray(bits[..., 0] > 0), bits),
        "rgba.png": (Image.fromarray(np.dstack([COLOUR, SMOOTH])), COLOUR),
        "x.bmp": (Image.fromarray(COLOUR), COLOUR),
    }
    for name, (picture, expected) in kinds.items():
        picture.save(
            tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {})
        )
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=name)
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"cmyk.{suffix}"
        Image.fromarray(COLOUR).convert("CMYK").save(path)
        np.testing.assert_allclose(read_image(path).astype(int), COLOUR, atol=8)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"x.{suffix}"
    options = {} if suffix == "tif" else {"duration": 90}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as stored:
        assert stored.n_frames == 3
    found = read_image(path)
    assert found.shape == (6, 8, 3) and np.abs(found.astype(int) - [255, 0, 0]).max() < 3


def test_a_picture_cut_short_is_refused_not_filled_up(tmp_path):
    path = tmp_path / "x.jpg"
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, progressive=True, quality=90)
    whole = path.read_bytes()
    assert read_image(path).shape == (64, 64, 3)
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "cannot read this image")
    deep = deep_png(RNG.integers(0, 64, (64, 64, 3), dtype=np.uint16))
    (tmp_path / "x.png").write_bytes(deep[: len(deep) // 2])
    refused(tmp_path / "x.png", "cannot read this image")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_that_claims_more_than_it_can_hold_is_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(SMOOTH).save(path)
    content = path.read_bytes()
    if suffix == "png":
        head = b"IHDR" + struct.pack(">II", 20, 3_000_000) + content[24:29]
        content = content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
    else:  # rows of pixels, not those of a strip
        at = content.index(struct.pack("<HHI", 257, 4, 1)) + 8
        content = content[:at] + struct.pack("<I", 3_000_000) + content[at + 4 :]
    path.write_bytes(content)
    with Image.open(path) as image:
        assert image.size == (20, 3_000_000)
    refused(path, f"it claims 20 x 3000000 pixels in {len(content)} bytes")
    with pytest.raises(UserError, match="it claims 20 x 3000000 pixels"):
        read_label(path)


def test_blank_pictures_are_no_lies(tmp_path):
    for suffix, options in (("png", {}), ("tif", {"compression": "group4"}), ("gif", {})):
        Image.new("1", (3000, 2000)).save(tmp_path / f"x.{suffix}", **options)
        assert not read_image(tmp_path / f"x.{suffix}").any()


def test_formats_that_other_programs_would_read_are_refused(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(COLOUR).save(path, format="EPS")
    refused(path, "cannot identify image file")  # whether they are installed or not


def test_large_pictures_are_read_and_bombs_refused(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert read_image(tmp_path / "x.png").shape == (30, 30, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    refused(tmp_path / "x.png", "800 pixels", "make it smaller")
