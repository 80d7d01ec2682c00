"""The report page is complete, self-contained and safe against hostile names."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.classes import make_classes
from jaxseg.metrics import summarise
from jaxseg.report import write_report

EVIL = "<script>alert('1')</script>&\"{title}"


class Page(HTMLParser):
    """Tags with attributes, the text of each tag's content, and a check that tags are balanced."""

    VOID = {"meta", "img"}

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture
def page(tmp_path):
    classes = make_classes([EVIL, "sky", "moon"], [(200, 0, 0), (0, 200, 0), (7, 8, 9)])
    scores = summarise(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0], [0, 0, 0]]), classes.names)
    image = np.full((900, 1300, 3), 90, np.uint8)
    label = np.zeros(image.shape[:2], np.uint8)
    label[:9] = 255
    samples = [(f"val/{EVIL}", image, label, np.ones_like(label))]
    path = tmp_path / "report.html"
    write_report(
        path,
        f"Title {EVIL}",
        {"images": 3, "rate": 7.654321, "none": float("nan"), EVIL: EVIL},
        scores,
        classes,
        samples,
    )
    return Page(path)


def test_names_from_outside_are_text(page):
    assert not page.open
    assert not {"script", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    text = "".join(page.text)
    assert text.count(EVIL) == 2 + 2 + 2 + 1  # title twice, summary, table and legend, sample
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_loaded_from_elsewhere(page):
    sources = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert sources and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    policy = [
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy[0]


def test_pictures_are_image_label_prediction(page):
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert [a["alt"] for a in pictures] == ["image", "label", "prediction"]
    decoded = []
    for a in pictures:
        with Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) as stored:
            assert stored.size == (640, 443)
            decoded.append(np.asarray(stored)[300, 300])
    expected = [[90, 90, 90], [145, 45, 45], [45, 145, 45]]
    np.testing.assert_allclose(np.stack(decoded).astype(int), expected, atol=3)


def test_numbers_and_absent_classes(page):
    text = " ".join(page.text)
    assert "77.50" in text and "87.50" in text  # mean IoU, mean and pixel accuracy
    assert re.search(r"sky\s+80\.00\s+100\.00\s+80\.00\s+88\.89\s+50\.00", text)
    assert re.search(r"moon\s+n/a\s+n/a\s+n/a\s+n/a\s+0\.00", text)
    assert re.search(r"images\s+3\s+rate\s+7\.654\s+none\s+n/a", text)
    widths = [a["style"] for tag, a in page.tags if tag == "i"]
    assert widths == ["width:75.0%", "width:80.0%"]


def test_legend_names_what_the_samples_show(page):
    start = next(i for i, text in enumerate(page.text) if text.startswith("Samples"))
    legend = page.text[start + 1 :]
    assert [t for t in legend if t.strip()][:3] == [EVIL, "sky", "ignored"]


def test_no_samples(tmp_path):
    classes = make_classes(["a"])
    path = tmp_path / "report.html"
    write_report(path, "t", {}, summarise(np.zeros((2, 1), int), classes.names), classes, [])
    page = Page(path)
    assert not page.open and "Samples" not in "".join(page.text)
    assert "".join(page.text).count("n/a") == 3 + 4
