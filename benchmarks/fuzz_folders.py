"""Readers of what stands in several files, with valid ones to damage: a model, a run that goes on,
checkpoints, an interrupted download and what its server answers."""

import contextlib
import importlib
import json
import pathlib
import socket
import tempfile
import threading
from collections.abc import Callable

import numpy as np
import safetensors.numpy

import jaxseg
from benchmarks.format_mutations import safetensors_header
from benchmarks.fuzz_files import Reader, Sample
from benchmarks.mutations import anyhow, json_line, json_part
from jaxseg import config as configuration
from jaxseg import logs, model_dir, resume
from jaxseg.checkpoint import Checkpoints, inspect
from jaxseg.data.classes import make_classes
from jaxseg.data.shapes import shapes
from jaxseg.downloads import fetch, sha256_of
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes as shapes_of
from jaxseg.weights import digest


def _in_folder(write: Callable[[pathlib.Path], None]) -> dict[str, bytes]:
    """The files that ``write`` leaves in a folder."""
    with tempfile.TemporaryDirectory() as name:
        where = pathlib.Path(name)
        write(where)
        paths = [path for path in where.rglob("*") if path.is_file()]
        return {str(path.relative_to(where)): path.read_bytes() for path in paths}


def _model() -> Reader:
    config = importlib.import_module("configs.quickstart").get_config("smoke")
    classes = make_classes([f"class {k}" for k in range(4)])
    spec = jaxseg.build.segmenter_spec(config, len(classes))
    params, stats = draw(*shapes_of(spec), 0)
    files = _in_folder(lambda where: model_dir.save(where, params, stats, config, classes))
    undigested = safetensors.numpy.save({**params, **stats}, {"format": "jaxseg"})
    damages = {"config.json": (anyhow, json_part, json_part, json_part)}

    def read(where):
        return " ".join(jaxseg.load(where).classes.names)

    other = Sample(
        files | {"model.safetensors": undigested},
        {"model.safetensors": (safetensors_header,)},
    )
    return Reader((Sample(files, damages), Sample(files, damages), other), read)


def _run() -> Reader:
    """What a resumed training reads of the start before (train.py)."""
    config = configuration.defaults()
    data = resume.data_record(shapes(4, (16, 16), seed=0), shapes(2, (16, 16), seed=1))

    def write(where):
        stored = json.loads(configuration.to_json(config))
        record = {"step": 0, "command": "train.py", "config": stored, "data": data}
        (where / logs.RUN).write_text(json.dumps(record, indent=2))
        lines = ({"step": s, "loss": 1 / s, "nonfinite": {"lr": "nan"}} for s in range(1, 9))
        (where / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read(where):
        text, before = logs.last_start(where)
        stored = configuration.from_json(text, f"{where}/run.json").to_dict()
        said = resume.compare(str(where), stored, config.to_dict(), before, data, 5)
        with logs.MetricLog(where) as log:
            log.truncate_after(5)
        return " ".join(said)

    damages = {"run.json": (anyhow, json_part, json_part), "metrics.jsonl": (json_line,)}
    return Reader((Sample(_in_folder(write), damages),), read)


def _checkpoint() -> Reader:
    state = {"params": {"a": np.arange(5.0), "b": np.ones((2, 3), np.float32)}, "step": np.array(3)}

    def write(where):
        with Checkpoints(where) as checkpoints:
            checkpoints.save(1, state, 0.5)
            checkpoints.save(2, state, 0.7)

    def signed(content, draw):
        """As an attacker does it, whose digest is right."""
        try:
            manifest = json.loads(json_part(content, draw))
            manifest.pop("sha256", None)
            return json.dumps(manifest | {"sha256": digest({}, manifest)}).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            return anyhow(content, draw)

    def read(where):
        if (where / "sign").exists():
            (step(where) / "manifest.json").unlink()
            files = [path for path in step(where).rglob("*") if path.is_file()]
            hashes = {str(path.relative_to(step(where))): sha256_of(path) for path in files}
            manifest = {"step": 2, "metric": 0.7, "files": hashes}
            manifest |= {"sha256": digest({}, manifest)}
            (step(where) / "manifest.json").write_text(json.dumps(manifest))
        inspect(where)
        with Checkpoints(where) as checkpoints:
            checkpoints.best()
            checkpoints.restore(state)
        return ""

    def step(where):
        return where / "step_00000002"

    files = _in_folder(write)
    damages = {"step_00000002/manifest.json": (anyhow, json_part, signed, signed)}
    inside = {
        name: (anyhow, json_part) if content[:1] == b"{" else (anyhow,)
        for name, content in files.items()
        if name.startswith("step_00000002/") and content and "manifest.json" not in name
    }
    return Reader((Sample(files, damages), Sample(files | {"sign": b""}, inside)), read)


def _download() -> Reader:
    """A part file with its note on this side, and what a server answers on the other."""
    head = b'HTTP/1.1 %s\r\nContent-Length: %d\r\nContent-Range: bytes %s\r\nETag: "v1"\r\n\r\n'
    files = {"a.bin.part": b"0123", "a.bin.part.etag": b'"v1"'}
    files["answer"] = head % (b"206 Partial Content", 8, b"4-11/12") + b"456789ab"
    other = files | {"answer": head % (b"416 Range Not Satisfiable", 0, b"*/4")}
    whole = files | {"answer": head % (b"200 OK", 12, b"0-11/12") + b"0123456789ab"}
    damages = {"a.bin.part.etag": (anyhow,), "answer": (anyhow, _header)}

    def read(where):
        with _server((where / "answer").read_bytes()) as port:
            fetch(f"http://127.0.0.1:{port}/a", where / "a.bin", "a", pause=lambda _: None)
        return ""

    return Reader(tuple(Sample(each, damages) for each in (files, other, whole)), read)


def _header(content: bytes, draw) -> bytes:
    """Another status, or another value of a header."""
    lines = content.split(b"\r\n")
    at = draw.randrange(4)
    strange = (b"-1", b"9" * 30, b"\x1b[31m", b"x" * 70_000, b"", b"bytes */0", b"bytes */4")
    status = (b"416 x", b"301 x", b"500 x", b"200", b"404 \x1b[2J", b"100 x", b"204 x", b"999 x")
    name = lines[at].split(b" ")[0]
    lines[at] = name + b" " + draw.choice(strange if at else status)
    return b"\r\n".join(lines)


@contextlib.contextmanager
def _server(answer: bytes):
    """Gives ``answer`` to whatever asks at the port that it yields."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    caller = listening.accept()[0]
                except OSError:  # shut down
                    return
                with caller, contextlib.suppress(OSError):
                    caller.recv(65536)
                    caller.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


FOLDERS: dict[str, Callable[[], Reader]] = {
    "model": _model,
    "run": _run,
    "checkpoint": _checkpoint,
    "download": _download,
}
