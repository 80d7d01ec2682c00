"""What a run leaves behind besides weights: metrics.jsonl, TensorBoard events, run.json."""

import importlib.metadata
import json
import math
import pathlib
import platform
import subprocess

import jaxseg
from jaxseg.weights import write_atomically


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
        """Forget everything after ``step``, and a line that a crash left half written.

        A run that resumes at ``step`` calls it before its first `write`, so that no step is there
        twice. TensorBoard events stay in their file but are marked as replaced.
        """
        self._file.close()
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(self._path, "".join(kept).encode())
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._purge = step + 1

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def run_record(workdir, config_json: str, command: str) -> None:
    """Write ``workdir/run.json``: what would be needed to run the same again."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    record = {
        "command": command,
        "config": json.loads(config_json),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "jaxseg": jaxseg.__version__} | versions,
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(pathlib.Path(workdir) / "run.json", text.encode())


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
