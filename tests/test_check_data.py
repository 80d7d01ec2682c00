"""The data checker counts right, finds every fault, and draws what it can."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.classes import make_classes
from jaxseg.data.folder import folder
from jaxseg.tools.check_data import check, save_samples


def add(root, stem, label):
    for part in ("images", "labels"):
        (root / part / "train").mkdir(parents=True, exist_ok=True)
    image = np.repeat(label[:, :, None] * 40, 3, axis=2)
    Image.fromarray(image).save(root / "images" / "train" / f"{stem}.png")
    Image.fromarray(label).save(root / "labels" / "train" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("0 road\n1 sky\n2 void\n3 moon\n")
    add(tmp_path, "a", np.uint8([[0, 0, 1, 2]] * 3))
    add(tmp_path, "b", np.uint8([[0, 255]] * 6))
    add(tmp_path, "c", np.uint8([[1, 1, 1, 1]] * 3))
    return tmp_path


def test_counts(root):
    report = check(folder(root, "train", ("void",)))
    assert report.problems == () and report.count == 3
    assert report.sizes == {(3, 4): 2, (6, 2): 1}
    assert report.pixels.tolist() == [6 + 6, 3 + 12, 0] and report.ignored == 3 + 6
    assert report.images.tolist() == [2, 2, 0]
    lines = str(report).splitlines()
    assert "3 examples" in lines[0] and "height 3..6, width 2..4" in lines[0]
    assert lines[1].split() == ["road", "33.33%", "of", "pixels", "2", "images"]
    assert "25.00%" in lines[4] and lines[5].endswith("moon")


def test_all_faults_are_found_each_with_its_file(root):
    (root / "images" / "train" / "a.png").write_bytes(b"")
    add(root, "b", np.uint8([[9, 0]]))
    add(root, "d", np.uint8([[1, 1]]))
    Image.new("L", (5, 5)).save(root / "labels" / "train" / "d.png")
    report = check(folder(root, "train"))
    assert report.count == 4 and len(report.problems) == 3
    for problem, part in zip(
        report.problems, ("images/train/a.png", "b.png: label value 9", "d.png: label is 5x5"),
        strict=True,
    ):  # fmt: skip
        assert part in problem and "\n" not in problem
    assert report.pixels.tolist() == [0, 12, 0, 0]  # the sound file is still counted


def test_wholly_ignored_split_is_a_problem(root):
    for stem in "abc":
        add(root, stem, np.uint8([[2, 255]]))
    (problem,) = check(folder(root, "train", ("void",))).problems
    assert "every pixel" in problem


class Loose(list):
    """A source from elsewhere that does not check its labels."""

    classes = make_classes(["a", "b"])


def test_other_sources_are_checked_too():
    image, label = np.zeros((2, 2, 3), np.uint8), np.uint8([[0, 1], [2, 255]])
    source = Loose(
        [
            {"image": image, "label": label, "name": "x"},
            {"image": image[:1], "label": label % 2, "name": "y"},
        ]
    )
    problems = check(source).problems
    assert "x: label value 2" in problems[0] and problems[1].startswith("y: image (1, 2, 3)")


def test_page_of_samples(root, tmp_path):
    add(root, "d", np.uint8([[9, 9]]))  # unreadable: left out
    save_samples(folder(root, "train", ("void",)), tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.mode == "RGB" and min(page.size) > 100
