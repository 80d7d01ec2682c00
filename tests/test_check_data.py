"""The data checker counts right, finds every fault, and draws what it can."""

import numpy as np
import pytest
from PIL import Image
from test_class_data import folder_per_class

from jaxseg import viz
from jaxseg.data.classes import make_classes
from jaxseg.data.classification import class_folder
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


class Named(Loose):
    """With so many classes that 255 is one."""

    classes = make_classes([f"class {k}" for k in range(300)])


def test_one_class_per_image(tmp_path, monkeypatch):
    folder_per_class(tmp_path, ["train/n01/a.jpg", "train/n01/b.jpg", "train/n02/c.jpg", "v/n03/d"])
    source = class_folder(tmp_path, "train")
    report = check(source)
    assert report.problems == () and report.sizes == {(20, 30): 3}
    assert report.images.tolist() == report.pixels.tolist() == [2, 1, 0]
    lines = str(report).splitlines()
    assert lines[1].split() == ["n01", "66.67%", "of", "images", "2", "images"]
    assert len(lines) == 5 and lines[4].endswith("n03")
    image, titles = np.zeros((2, 2, 3), np.uint8), []
    labels = {name: np.int32(k) for name, k in (("x", 255), ("y", 300), ("z", -1))}
    strange = Named({"image": image, "label": k, "name": name} for name, k in labels.items())
    report = check(strange)
    assert report.images[255] == 1 and report.ignored == 0
    assert [problem.split(" but")[0] for problem in report.problems] == [
        "y: label value 300", "z: label value -1",
    ]  # fmt: skip
    sheet = viz.sheet
    monkeypatch.setattr(viz, "sheet", lambda rows, said: titles.append(said) or sheet(rows, said))
    for each in (source, strange):
        save_samples(each, tmp_path / "page.png")
    assert titles == [
        ["n01: train/n01/a.jpg", "n01: train/n01/b.jpg", "n02: train/n02/c.jpg"],
        ["class 255: x"],
    ]
    with Image.open(tmp_path / "page.png") as page:
        assert page.mode == "RGB"


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
