"""What a run leaves behind besides weights: metrics.jsonl, TensorBoard events, run.json, and
starts.jsonl with a line like run.json for every start, resumed ones too."""

import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
import subprocess

import jaxseg
from jaxseg.errors import UserError
from jaxseg.weights import write_atomically

RUN, STARTS = "run.json", "starts.jsonl"


class MetricLog:
    """Scalars per step, appended to ``workdir/metrics.jsonl`` and to TensorBoard.

    Each line is one valid JSON object: {"step": 20, "loss": 1.5}. JSON has no NaN and no infinity,
    so such a value becomes null and its name goes into {"nonfinite": {"loss": "nan"}}.
    TensorBoard needs the package tensorboardX.
    """

    def __init__(self, workdir):
        self._directory = pathlib.Path(workdir)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._directory / "metrics.jsonl"
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._events, self._purge = None, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, step: int, **values) -> None:
        """Log scalars of one step; the line is on its way to the disk on return."""
        values = {name: float(value) for name, value in values.items()}
        strange = {name: str(v) for name, v in values.items() if not math.isfinite(v)}
        line = {"step": int(step)} | {n: None if n in strange else v for n, v in values.items()}
        if strange:
            line["nonfinite"] = strange
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(self._directory / "tensorboard"), purge_step=self._purge
            )
        for name, value in values.items():
            self._events.add_scalar(name, value, int(step))

    def truncate_after(self, step: int) -> None:
        """Forget everything after ``step``, and lines that a crash left half written or damaged.

        A run that resumes at ``step`` calls it before its first `write`, so that no step is there
        twice. TensorBoard events stay in their file but are marked as replaced.
        """
        self._file.close()
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
        write_atomically(self._path, b"".join(kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._purge = step + 1

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity if it is none (a power cut leaves zeros)."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def run_record(
    workdir, config_json: str, command: str, data: dict | None = None, step: int = 0
) -> None:
    """Record a start: what would be needed to run the same again.

    ``run.json`` is the newest start, ``starts.jsonl`` has all. ``data``: what `resume.compare`
    needs to know of the data set; ``step``: the step this start goes on from.
    """
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    record = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": command,
        "config": json.loads(config_json),
        "data": data,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "jaxseg": jaxseg.__version__} | versions,
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }
    folder = pathlib.Path(workdir)
    write_atomically(folder / RUN, (json.dumps(record, indent=2) + "\n").encode())
    with open(folder / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def last_start(workdir) -> tuple[str, dict | None]:
    """Configuration (JSON) and data of the newest `run_record`. Raises UserError: missing, damaged.

    The data is None where the run was started before it was recorded.
    """
    path = pathlib.Path(workdir) / RUN
    try:
        record = json.loads(path.read_bytes())
        return json.dumps(record["config"]), record.get("data")
    except OSError as error:
        reason = error.strerror
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        reason = "damaged"
    raise UserError(
        f"{path}: {reason}, so nothing says what the run in {workdir} was; put it back (the last "
        f"line of {STARTS} has the same content) or name another --workdir"
    )


def _commit() -> str | None:
    """The commit of the checkout that jaxseg runs from, "-dirty" if edited; None if installed."""
    root = pathlib.Path(jaxseg.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None
