"""What may differ when a run goes on, what may not, and what is written down about each start."""

import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import logs, resume
from jaxseg.config import defaults, from_json, to_json
from jaxseg.data.folder import folder
from jaxseg.data.shapes import shapes
from jaxseg.errors import UserError

DATA = resume.data_record(shapes(4, (16, 16), seed=0), shapes(2, (16, 16), seed=1))
FIELDS = {
    name: value
    for name, value in resume._flat(defaults().to_dict())
    if name not in ("train.steps", "optim.schedule_steps")
}


def compare(changes, done=0, before=DATA, data=DATA):
    config = defaults()
    config.update_from_flattened_dict(changes)
    stored = from_json(to_json(defaults()), "run.json").to_dict()  # tuples come back as tuples
    return resume.compare("DIR", stored, config.to_dict(), before, data, done)


def another(value):
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[0] if value else "more")
    return f"{value}x" if isinstance(value, str) else value + 1


def test_nothing_changed_nothing_said():
    assert compare({}) == []
    assert compare({"resume": True}) == []


def test_every_field_is_either_said_or_refused():
    said = set()
    for name, value in FIELDS.items():
        try:
            lines = compare({name: another(value)})
        except UserError as error:
            message = str(error)
            assert f"config.{name} was {value!r} and is {another(value)!r}" in message
            assert "set it back, or name another --workdir" in message and "\n" not in message
            continue
        said.add(name)
        if name != "resume":
            assert lines[0].startswith(f"changed: {name} {value!r} -> {another(value)!r}")
    assert {name for name in said if not name.startswith("eval.")} == {
        "resume", "init_from", "data.root", "data.test", "data.workers", "method.policy",
        "optim.lr", "train.log_every", "train.eval_every", "train.checkpoint_every",
        "train.max_bad_steps",
    }  # fmt: skip
    assert {name for name in FIELDS if name.startswith("eval.")} <= said


def test_the_page_has_every_field_that_may_differ():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    for name in resume.MAY_CHANGE:
        assert f"`{name}" in page
    known = dict(resume._flat(defaults().to_dict()))
    assert all(name in known for name in resume.MAY_CHANGE if name != "eval")


def test_all_that_is_refused_comes_in_one_line():
    with pytest.raises(UserError) as raised:
        compare({"seed": 1, "model.variant": "L", "train.log_every": 7})
    message = str(raised.value)
    assert "seed was 0 and is 1" in message and "model.variant was 'B' and is 'L'" in message
    assert "log_every" not in message and "set them back" in message
    changes = {name: another(FIELDS[name]) for name in FIELDS if name.startswith("model.")}
    with pytest.raises(UserError, match=f"and {len(changes) - 4} more"):
        compare(changes)


def test_the_length_of_the_schedule_is_said():
    (steps, schedule) = compare({"train.steps": 9})
    assert steps == "changed: train.steps 160000 -> 9"
    assert schedule.startswith("changed: learning-rate schedule 160000 -> 9 (another course")
    longer = {"train.steps": 200_000, "optim.schedule_steps": 160_000}  # the schedule stays
    assert not [line for line in compare(longer) if "learning-rate schedule" in line]


def test_fewer_steps_than_are_done_are_refused():
    assert compare({"train.steps": 9}, done=9)
    with pytest.raises(UserError, match="train.steps=9, but 10 steps are done; ask for 10 or more"):
        compare({"train.steps": 9}, done=10)


def test_clipping_may_be_tuned_but_not_switched():
    with pytest.raises(UserError, match="optim.clip_norm was 0.0 and is 1.0"):
        compare({"optim.clip_norm": 1.0})
    stored, new = ConfigDict(defaults().to_dict()), ConfigDict(defaults().to_dict())
    stored.optim.clip_norm, new.optim.clip_norm = 5.0, 1.0
    (line,) = resume.compare("DIR", stored.to_dict(), new.to_dict(), DATA, DATA, 0)
    assert line.startswith("changed: optim.clip_norm 5.0 -> 1.0 (another course")


@pytest.fixture
def pictures(tmp_path):
    """A maker of folder data sets: (classes, stems) -> source."""

    def make(classes, stems, name="d"):
        root = tmp_path / name
        for part in ("images", "labels"):
            (root / part / "train").mkdir(parents=True)
            for stem in stems:
                Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / part / "train" / stem)
        (root / "classes.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(classes)))
        return folder(root, "train")

    return make


@pytest.mark.parametrize(
    ("classes", "stems", "message"),
    [
        (["a", "c"], ["1.png", "2.png"], r"2 before, 2 now.* number 1 \(b before, c now\)"),
        (["a"], ["1.png", "2.png"], r"2 before, 1 now.* number 1 \(b before, none now\)"),
        (["a", "b", "c"], ["1.png", "2.png"], r"number 2 \(none before, c now\)"),
        (["a", "b"], ["1.png"], "config.data.train selected 2 images before and 1 now"),
        (["a", "b"], ["1.png", "3.png"], "config.data.train selects as many .* others"),
    ],
)
def test_another_data_set_is_refused(pictures, classes, stems, message):
    first = pictures(["a", "b"], ["1.png", "2.png"])
    then = pictures(classes, stems, "other")
    before = json.loads(json.dumps(resume.data_record(first, first)))
    with pytest.raises(UserError, match=message) as raised:
        compare({}, before=before, data=resume.data_record(then, then))
    assert "use the data it was trained on" in str(raised.value)


def test_a_data_set_that_moved_is_the_same(pictures):
    first = pictures(["a", "b"], ["1.png", "2.png"])
    moved = pictures(["a", "b"], ["1.png", "2.png"], "moved")
    before = json.loads(json.dumps(resume.data_record(first, first)))
    now = resume.data_record(moved, moved)
    assert compare({"data.root": "moved"}, before=before, data=now) == [
        "changed: data.root '' -> 'moved'"
    ]


def test_runs_from_before_the_data_was_recorded_go_on():
    assert compare({}, before=None) == []


def test_every_start_is_kept(tmp_path):
    for step in (0, 7):
        logs.run_record(tmp_path, to_json(defaults()), "command", DATA, step)
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 7]
    assert json.loads((tmp_path / "run.json").read_text()) == starts[1]
    text, data = logs.last_start(tmp_path)
    assert data == DATA
    assert from_json(text, "run.json").to_dict() == defaults().to_dict()


@pytest.mark.parametrize(
    "content", [None, "", "[1]", "{}", '{"config"', "[" * 100_000, '{"config": {}, "data": ']
)
def test_a_run_without_its_record_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    reason = "No such file" if content is None else "damaged"
    with pytest.raises(UserError, match=f"run.json: {reason}.*starts.jsonl") as raised:
        logs.last_start(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "before",
    [
        *(3, [], {}, DATA | {"classes": None}, DATA | {"classes": [1]}, DATA | {"val": 7}),
        {"classes": []},
        DATA | {"train": {}},
    ],
)
def test_a_damaged_record_of_the_data_is_refused(before):
    with pytest.raises(UserError, match="DIR/run.json: damaged, .* which data .*starts.jsonl"):
        compare({}, before=before)


def test_damaged_lines_of_the_log_are_dropped(tmp_path):
    with logs.MetricLog(tmp_path) as log:
        log.write(1, loss=1.0)
        log.write(2, loss=2.0)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    strange = [b"\0\0\0", b'{"loss": 3}', b"\xff", b'{"step": "1"}', b'{"step": null}', b"[1]"]
    strange += [b'{"step": [1]}', b'{"step": NaN}', b"[" * 100_000, b"7", b""]
    path.write_bytes(whole + b"".join(line + b"\n" for line in strange) + b'{"step": 3, "lo')
    with logs.MetricLog(tmp_path) as log:
        log.truncate_after(2)
    assert path.read_bytes() == whole
