"""Progress lines under a clock that the test moves; metric logs and the run record."""

import io
import json
import struct

import numpy as np
import pytest

import jaxseg
from jaxseg.logs import MetricLog, run_record
from jaxseg.progress import Progress


class Screen(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def drive(stream, updates, **options):
    """``updates``: (seconds since the start, done)."""
    clock = Clock()
    with Progress(100, "train", stream=stream, clock=clock, **options) as progress:
        for seconds, done in updates:
            clock.now = 1000.0 + seconds
            progress.update(done, loss=1 / 3)
    return stream.getvalue()


def test_lines_have_rate_elapsed_and_left():
    # One minute of compilation, then two steps per second.
    out = drive(io.StringIO(), [(60, 1), (65, 11), (66, 13), (70, 21)])
    assert out.splitlines() == [
        "train  1/100  0:01:00  loss 0.3333",
        "train  11/100  2/s  0:01:05  left 0:00:44  loss 0.3333",
        "train  21/100  2/s  0:01:10  left 0:00:40  loss 0.3333",
        "train  21/100  2/s  0:01:10  left 0:00:40  loss 0.3333",
    ]


def test_a_short_job_prints_one_line():
    out = drive(io.StringIO(), [(1, 50), (3, 100)])
    assert out == "train  100/100  25/s  0:00:03  loss 0.3333\n"


def test_a_resumed_job_counts_only_its_own_work():
    out = drive(io.StringIO(), [(10, 91), (14, 93)], start=90)
    assert out.splitlines()[-1] == "train  93/100  0.5/s  0:00:14  left 0:00:14  loss 0.3333"


def test_a_job_without_updates_shows_its_start():
    assert drive(io.StringIO(), [], start=100) == "train  100/100  0:00:00\n"


def test_long_times():
    out = drive(io.StringIO(), [(0, 0), (36_000, 10)])
    assert out.splitlines()[-1] == "train  10/100  0.000278/s  10:00:00  left 90:00:00  loss 0.3333"


def test_a_terminal_gets_one_line_that_is_rewritten():
    out = drive(Screen(), [(1, 1), (1.1, 2), (2, 3)])
    assert out.count("\n") == 1 and out.endswith("loss 0.3333\n")
    assert [part.split("  ")[1] for part in out.split("\r\x1b[K")[1:]] == [
        "1/100",
        "3/100",
        "3/100",
    ]


def test_values_are_read_only_for_printing():
    class Device:
        reads = 0

        def __float__(self):
            self.reads += 1
            return 1.0

    value, clock = Device(), Clock()
    with Progress(9, "train", stream=io.StringIO(), clock=clock) as progress:
        for done in range(9):
            progress.update(done, loss=value)
        assert value.reads == 0
    assert value.reads == 1


def read_jsonl(workdir):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_events(workdir):
    """TensorBoard's events; a record is length, crc, event protobuf, crc."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_metrics_reach_json_and_tensorboard(tmp_path):
    with MetricLog(tmp_path / "new") as log:
        log.write(1, loss=np.float32(0.5))
        assert read_jsonl(tmp_path / "new") == [{"step": 1, "loss": 0.5}]  # before the close
        log.write(2, loss=0.25, miou=0.1)
    assert read_jsonl(tmp_path / "new")[1] == {"step": 2, "loss": 0.25, "miou": 0.1}
    found = [(e.step, v.tag) for e in read_events(tmp_path / "new") for v in e.summary.value]
    assert found == [(1, "loss"), (2, "loss"), (2, "miou")]


def test_values_that_json_lacks_become_null(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(3, loss=float("nan"), norm=float("inf"), lr=0.1)
    strange = {"loss": "nan", "norm": "inf"}
    assert read_jsonl(tmp_path) == [
        {"step": 3, "loss": None, "norm": None, "lr": 0.1, "nonfinite": strange}
    ]


def test_a_resumed_run_has_no_step_twice(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, loss=float(step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "lo')  # killed while writing
    with MetricLog(tmp_path) as log:
        log.truncate_after(20)
        log.write(30, loss=-1.0)
    assert [(line["step"], line["loss"]) for line in read_jsonl(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, -1.0),
    ]
    restarts = [e.step for e in read_events(tmp_path) if e.session_log.status == 1]
    assert restarts == [21]  # TensorBoard hides what earlier files have from here on


@pytest.mark.parametrize("there", [False, True])
def test_truncating_a_new_log_is_fine(tmp_path, there):
    with MetricLog(tmp_path) as log:
        if there:
            log.write(1, loss=1.0)
        log.truncate_after(0)
    assert read_jsonl(tmp_path) == []


def test_run_record(tmp_path):
    run_record(tmp_path / "run", '{"lr": 0.1}', "train.py --config=a.py")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"] == {"lr": 0.1}
    assert record["command"] == "train.py --config=a.py"
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["jaxseg"] == jaxseg.__version__
    assert record["versions"].keys() >= {"python", "jax", "flax", "optax"}
    assert len(record["devices"]) > 0
