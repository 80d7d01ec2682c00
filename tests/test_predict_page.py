"""The page of predictions says what was found, holds all it needs and is safe against names."""

import base64
import csv
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxseg import predict_page
from jaxseg import predict_pictures as draw
from jaxseg.data.classes import make_classes
from jaxseg.exit_pictures import exit_map

EVIL = "<script>alert('1')</script>&\"{{title}}{% raw %}\udcff"
CLASSES = make_classes([EVIL, "sky", "sea"], [(200, 0, 0), (0, 200, 0), (0, 0, 200)])
LAYERS = [2, 5]
RNG = np.random.default_rng(0)


def a_picture(name=EVIL, size=(60, 90), noisy=False, **changes) -> predict_page.Picture:
    """Left half class 0, right half class 1; after the first stage all 0, then a quarter."""
    labels = np.zeros(size, np.uint8)
    labels[:, size[1] // 2 :] = 1
    quarter = np.zeros((6, 8), np.uint8)
    quarter[:, 6:] = 1
    left = np.full((6, 9), -1)
    left[:2], left[2:4, :3] = 0, 1
    image = np.full((*size, 3), 90, np.uint8)
    if noisy:
        image = RNG.integers(0, 256, image.shape, dtype=np.uint8)
        labels = RNG.integers(0, 3, size, dtype=np.uint8)
    found = predict_page.Picture(
        name,
        image,
        labels,
        (np.zeros_like(labels), quarter),
        left,
        size,
        5.0,
        7.5,
        [54, 36, 27],
        12.3,
    )
    return found._replace(**changes)


DENSE = {"stages": (), "left": None, "tokens": [54], "gmacs": 7.5}


class Page(HTMLParser):
    """Tags with attributes, texts outside style and script, and a check that tags are balanced."""

    VOID = {"meta", "input", "image", "use"}

    def __init__(self, content: bytes):
        super().__init__()
        self.tags, self.text, self.raw, self.open = [], [], {}, []
        self.feed(content.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = data
        elif data.strip():
            self.text.append(data.strip())

    def all(self, tag):
        return [attributes for each, attributes in self.tags if each == tag]

    def images(self):
        """RGBA of every embedded picture."""
        urls = [a["href"] for a in self.all("image")]
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(u.split(",")[1]))).convert("RGBA"))
            for u in urls
        ]


def page_of(*pictures, layers=LAYERS, failures=(), count=None) -> Page:
    rows = [predict_page.row(p, "labels/x.png") for p in pictures]
    rows += [{"file": "f", "error": text} for text in failures]
    cards = [predict_page.card(p, CLASSES, layers, layers) for p in pictures]
    notes = predict_page.notes(rows, cards, layers, len(rows) if count is None else count)
    return Page(predict_page.render(f"Of {EVIL}", rows, notes, cards, CLASSES, layers))


@pytest.fixture(scope="module")
def page():
    return page_of(a_picture(), a_picture("second"), failures=[EVIL])


def test_tokens_are_told_per_stage_and_layers_per_exit():
    """A method that chooses tokens has stages without exits: no layers, as many ends as cuts."""
    picture = a_picture(left=None, labels=np.zeros((60, 90), np.uint8), stages=())
    card = predict_page.card(picture, CLASSES, [], [3, 6])
    assert card.numbers.endswith("tokens: 54 up to layer 3, 36 up to layer 6, 27 to the end")


def test_names_from_outside_are_text(page):
    assert not page.open
    assert [tag for tag, _ in page.tags].count("script") == 1
    shown = EVIL.encode("utf-8", "backslashreplace").decode()
    assert " ".join(page.text).count(shown) == 2 + 1 + 1 + 2  # titles, heading, failure, legends
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_loaded_and_nothing_else_runs(page):
    urls = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert urls and all(re.match("data:image/(jpeg|png);base64,|#", url) for url in urls)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("style", "script"):
        digest = hashlib.sha256(page.raw[kind].encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not any("style" in attributes for _, attributes in page.tags)  # the policy forbids them


def test_layers_are_the_predictions_in_the_order_of_the_stages(page):
    photo, first, second, final, veil = page.images()[:5]
    assert photo.shape == first.shape == (60, 90, 4) and (photo[..., :3] == 90).all()
    red, green = [200, 0, 0, 255], [0, 200, 0, 255]
    assert (first == red).all()
    assert (second[:, :67] == red).all() and (second[:, 68:] == green).all()
    assert (final[:, :45] == red).all() and (final[:, 45:] == green).all()
    over = page.all("image")[1:4]
    assert [a["class"] for a in over] == ["layer", "layer", "layer shown"]
    texts = [a["data-text"] for a in over]
    assert "layer 2: 50.0 % of the pixels will change" in texts[0]
    assert "layer 5: 24.4 %" in texts[1] and texts[2] == "final prediction"
    assert (veil[45:, :, 3] == 0).all() and (veil[:15, :, 3] > 0).all()


def test_veil_is_what_the_map_of_exits_shows():
    left = RNG.integers(-1, 3, (40, 50))
    picture = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    veil = draw.veil(left, 3) / 255.0
    mixed = (1 - veil[..., 3:]) * picture + veil[..., 3:] * veil[..., :3] * 255
    expected = exit_map(picture, left, ["a", "b", "c"], 1)
    np.testing.assert_allclose(mixed, expected, atol=2)
    early_to_late = [(255, 214, 64), (226, 96, 72), (104, 16, 112)]
    np.testing.assert_allclose(draw.exit_colours(3), early_to_late, atol=1)
    assert draw.exit_colours(0) == []


def test_slider_and_its_words(page):
    inputs = page.all("input")
    assert [a["max"] for a in inputs] == ["3", "3"] and inputs[0]["value"] == "3"
    assert inputs[0]["aria-label"] and inputs[0]["aria-valuetext"] == "final prediction"
    assert {"layer 2", "layer 5", "end"} <= set(page.text)
    assert [a["id"] for a in page.all("article")] == ["1", "2"]


def test_numbers(page):
    text = " ".join(page.text)
    assert "5 GMACs (dense 7.5), 12 ms, tokens: 54 up to layer 2, 36 up to layer 5" in text
    assert "27 to the end" in text and "90 x 60" in text
    assert "layer 2: 33 % left" in text and "layer 5: 11 % left, 44 % in all" in text
    assert "to the end: 56 %" in text
    assert re.search(r"sky 50\.0 %", text) and "sea" not in text
    assert re.search(r"pictures 2 failed 1 GMACs per picture 5 GMACs if dense 7\.5", text)


def test_dense_models_have_neither_slider_nor_script():
    page = page_of(a_picture(**DENSE), layers=[])
    assert not page.all("input") and not page.all("script") and not page.open
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert "script-src" not in policy
    text = " ".join(page.text)
    assert len(page.images()) == 2 and "slider" not in text
    assert "7.5 GMACs, 12 ms, tokens: 54 to the end" in text and "dense" not in text


def test_why_there_is_no_slider_is_said():
    windows = " ".join(page_of(a_picture(stages=())).text)
    assert "windows overlap" in windows and "slider" not in windows
    views = " ".join(page_of(a_picture(stages=(), left=None)).text)
    assert "looked at several times" in views


def test_pages_stay_small_whatever_the_picture():
    """Noise is what neither JPEG nor PNG can shrink."""
    sizes = []
    for size in ((900, 1300), (3000, 40), (1, 1)):
        card = predict_page.card(a_picture(size=size, noisy=True), CLASSES, LAYERS, LAYERS)
        sizes.append(len(card.photo + card.exits) + sum(len(layer.url) for layer in card.layers))
        assert max(card.width, card.height) <= 720
    assert max(sizes) < predict_page.LARGEST == 300_000
    calm = predict_page.card(a_picture(size=(900, 1300)), CLASSES, LAYERS, LAYERS)
    assert (calm.width, calm.height) == (720, 498)


def test_what_is_left_out_is_said():
    failures = [f"{k}: broken" for k in range(predict_page.MOST + 5)]
    text = " ".join(page_of(a_picture(), failures=failures).text)
    assert "and 5 more, in summary.csv" in text and "199: broken" in text
    assert "200: broken" not in text
    text = " ".join(page_of(a_picture(), count=4).text)
    assert "3 of 4 pictures were not looked at" in text
    rows = [predict_page.row(a_picture(), "x")] * 3
    cards = [predict_page.card(a_picture(), CLASSES, LAYERS, LAYERS)]
    assert "first 1 of 3 pictures" in " ".join(predict_page.notes(rows, cards, LAYERS, 3))
    reduced = a_picture(predicted_at=(30, 45))
    assert "90 x 60, predicted at 45 x 30, labels enlarged" in " ".join(page_of(reduced).text)


def test_without_any_prediction():
    page = page_of(failures=["x: broken"])
    assert not page.open and "pictures 0 failed 1" in " ".join(page.text)


def test_table_is_safe_to_open():
    rows = [predict_page.row(a_picture("=1+1\n\udcff.jpg"), "labels/a.png")]
    rows.append({"file": "b,c", "error": "b,c: broken"})
    first, second = csv.DictReader(io.StringIO(predict_page.table(rows).decode()))
    assert first["file"] == "./=1+1\n\\udcff.jpg" and first["gmacs"] == "5.000"
    assert first["tokens_per_stage"] == "54 36 27" and not first["error"]
    assert second["file"] == "b,c" and second["error"] == "b,c: broken" and not second["gmacs"]


def test_overlay_has_a_legend_of_what_it_shows():
    picture = a_picture(size=(50, 300))
    shown = draw.overlay(picture.image, picture.labels, CLASSES)
    assert shown.shape[1] == 300 and len(shown) > 60
    assert (shown[:50, :150] == [145, 45, 45]).all()
    legend = {tuple(rgb) for rgb in shown[58:].reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 200, 0)} <= legend and (0, 0, 200) not in legend
    narrow = draw.overlay(picture.image[:, :9], picture.labels[:, :9], CLASSES)
    assert narrow.shape[1] == 240 and (narrow[:50, 9:] == 255).all()


def test_pictures_beyond_the_limits_of_jpeg():
    long = np.zeros((1, 70_000, 3), np.uint8)
    shown = draw.overlay(long, long[..., 0], CLASSES)
    assert max(shown.shape) <= 65_535 and len(shown) < 100
    assert Image.open(io.BytesIO(draw.encoded(shown, "JPEG"))).size == shown.shape[1::-1]
