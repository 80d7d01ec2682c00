"""Damaged files, a few per reader: they are read or refused in one line, never anything else.

``python -m benchmarks.fuzz`` does the same with many more, and watches time and memory.
"""

import os
import random

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import READERS
from benchmarks.fuzz_files import Reader, Sample
from jaxseg.errors import UserError

COUNTS = {"model": 60, "checkpoint": 60, "download": 60}  # the slow ones; others: 150
pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow, about damage that it overlooks


@pytest.fixture(scope="module", params=READERS)
def named(request):
    return request.param, READERS[request.param]()


def test_valid_files_are_accepted(named, tmp_path):
    """Or else nothing behind the first check was ever tried."""
    _, reader = named
    accepted = 0
    for index, sample in enumerate(reader.samples):
        fuzz.write(sample.files, tmp_path / str(index))
        accepted += fuzz.answer(reader, tmp_path / str(index)) == "accepted"
    assert accepted >= 0.75 * len(reader.samples)  # some label files are of refused kinds


def test_damaged_files_are_accepted_or_refused(named, tmp_path):
    name, reader = named
    answers = {}
    for index in range(COUNTS.get(name, 150)):
        where = tmp_path / str(index)
        fuzz.damaged(reader, random.Random(f"suite/{name}/{index}"), where)
        answers[index] = fuzz.answer(reader, where)
    wrong = {i: answer for i, answer in answers.items() if answer not in ("accepted", "refused")}
    assert not wrong
    assert set(answers.values()) == {"accepted", "refused"} or name == "checkpoint"


def test_the_same_seed_does_the_same_damage(named, tmp_path):
    name, reader = named
    for folder in "ab":
        fuzz.damaged(reader, random.Random(f"0/{name}/7"), tmp_path / folder)
    for path in (tmp_path / "a").rglob("*.*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )


def raising(error):
    def read(where):
        raise error

    return Reader((Sample({"a": b"x"}, {"a": (lambda content, draw: content,)}),), read)


@pytest.mark.parametrize(
    "error, answer",
    [
        (UserError("a: damaged; get it again"), "refused"),
        (UserError("a\x1b[31m\nb\ud800" + "x" * 10**6), "refused"),  # see test_errors
        (KeyError("a"), "KeyError: \"'a'\""),
        (RecursionError("deep"), "RecursionError: 'deep'"),
        (SystemExit(3), "SystemExit: '3'"),
    ],
)
def test_only_user_errors_count_as_refused(error, answer, tmp_path):
    assert fuzz.answer(raising(error), tmp_path) == answer


def test_what_is_printed_and_said_holds_no_escapes(tmp_path):
    assert fuzz.answer(Reader((), lambda where: "sky \x1b[2J"), tmp_path).startswith("accepted '")
    assert fuzz.complaint("two\nlines") and fuzz.complaint("x" * 5000)
    assert fuzz.complaint("\u2028") and fuzz.complaint("\ud800")
    assert not fuzz.complaint("a/é.png: damaged; get it again")


def test_a_process_that_dies_is_counted_and_replaced(monkeypatch, tmp_path, capsys):
    def read(where):
        if (where / "a").read_bytes() == b"1":
            os._exit(9)
        return ""

    sample = Sample({"a": b""}, {"a": (lambda content, draw: b"%d" % draw.randrange(2),)})
    monkeypatch.setitem(fuzz.READERS, "mortal", lambda: Reader((sample,), read))
    row = fuzz.run("mortal", 0, 12, tmp_path)
    assert row["inputs"] == row["accepted"] + row["wrong"] == 12 and row["accepted"] > 0
    kept = [path.read_bytes() for path in tmp_path.glob("mortal-0-*/a")]
    assert kept == [b"1"] * row["wrong"] and kept
    assert capsys.readouterr().out.count("mortal: died (9): ") == row["wrong"]
