"""Damaged files for every reader: whatever is in a file, it is read or refused in one line.

    JAX_PLATFORMS=cpu python -m benchmarks.fuzz --count=10000 [--only=READER] [--seed=0]

Input number i of a reader depends on (seed, reader, i) alone, but for the times and random names
that orbax writes into checkpoints. Each reader runs in a process of its
own, which is replaced when it dies. Per reader: inputs, accepted ones, those refused with a
`UserError` of one printable line, all else (must be 0), CPU seconds of the slowest input and the
largest growth of memory in MiB. All else is: another exception, death, more than 2 s of CPU time,
more than 2.5 GiB, a message that is longer or holds control characters, and control characters in
what is accepted and printed. Such inputs are kept in --keep, a folder each. The last line is JSON;
exit code 1 unless all is well.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
import unicodedata
import warnings
from collections import Counter
from typing import NamedTuple

from benchmarks.fuzz_files import FILES, Reader
from benchmarks.fuzz_folders import FOLDERS
from jaxseg.errors import UserError

READERS = FILES | FOLDERS
LONGEST = 2000  # characters of a message
SLOWEST = 2.0  # seconds of CPU time
LARGEST = 2560  # MiB: a picture of as many pixels as Pillow allows takes 2400
DEADLINE = 120.0  # seconds until a process that says nothing counts as hanging


class Outcome(NamedTuple):
    """``kind``: "accepted", "refused" or what is wrong. ``growth``: MiB above what was in use."""

    kind: str
    seconds: float
    growth: float


def damaged(reader: Reader, draw: random.Random, where: pathlib.Path) -> None:
    """Fill the folder ``where`` with a damaged sample."""
    sample = draw.choice(reader.samples)
    name = draw.choice(sorted(sample.damages))
    mutate = draw.choice(sample.damages[name])
    write(sample.files | {name: mutate(sample.files[name], draw)}, where)


def write(files: dict[str, bytes], where: pathlib.Path) -> None:
    """Files by their names below the folder ``where``."""
    for path, content in files.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(content)


def answer(reader: Reader, where: pathlib.Path) -> str:
    """What the reader says to the files in ``where``: "accepted", "refused" or what is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            printed = reader.read(where)
    except UserError as error:
        return complaint(str(error)) or "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]!r}"
    printed += " ".join(said.getvalue().split("\n"))
    return f"accepted {printed[:300]!r}" if has_controls(printed) else "accepted"


def measured(reader: Reader, where: pathlib.Path) -> Outcome:
    """The `answer`, its time and its memory."""
    before, began = _memory("VmRSS"), time.process_time()
    _forget_peak()
    kind = answer(reader, where)
    seconds, growth = time.process_time() - began, _memory("VmHWM") - before
    if kind in ("accepted", "refused"):
        if seconds > SLOWEST:
            kind = f"{seconds:.1f} s"
        elif growth > LARGEST:
            kind = f"{growth:.0f} MiB"
    return Outcome(kind, seconds, growth)


def complaint(message: str) -> str:
    """What is wrong with the message of a `UserError`, or ""."""
    if has_controls(message):
        return f"control characters in {message[:300]!r}"
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters: {message[:300]!r}"
    return ""


def has_controls(text: str) -> bool:
    """Whether a terminal could take it for more than text, or could not show it at all."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def _memory(field: str) -> float:
    """MiB that the process uses; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024
    return 0.0


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _work(pipe, name: str, seed: int, indices: range, where: pathlib.Path) -> None:
    """Send an `Outcome` per index; the input lies in ``where`` until the next one."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(silent, number)
    warnings.simplefilter("ignore")
    reader = READERS[name]()
    for index in indices:
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        damaged(reader, random.Random(f"{seed}/{name}/{index}"), where)
        pipe.send(measured(reader, where))
        pipe.recv()


def run(name: str, seed: int, count: int, keep: pathlib.Path) -> dict:
    """All inputs of one reader: numbers for the table."""
    found, slowest, growth, index, wrong = Counter(), 0.0, 0.0, 0, 0
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder) / "input"
        while index < count:
            ours, theirs = context.Pipe()
            arguments = (theirs, name, seed, range(index, count), where)
            child = context.Process(target=_work, args=arguments, daemon=True)
            child.start()
            theirs.close()
            while index < count:
                try:
                    heard = ours.recv() if ours.poll(DEADLINE) else Outcome("hangs", DEADLINE, 0.0)
                except (EOFError, ConnectionResetError):
                    child.join()
                    heard = Outcome(f"died ({child.exitcode})", 0.0, 0.0)
                found[heard.kind] += 1
                slowest, growth = max(slowest, heard.seconds), max(growth, heard.growth)
                if heard.kind not in ("accepted", "refused"):
                    wrong += 1
                    kept = keep / f"{name}-{seed}-{index}"
                    shutil.copytree(where, kept, dirs_exist_ok=True)
                    print(f"{name}: {heard.kind}: {kept}", flush=True)
                index += 1
                if heard.kind.startswith(("died", "hangs")):
                    break
                ours.send(None)
            child.kill()
            child.join()
    return {
        "reader": name,
        "inputs": count,
        "accepted": found["accepted"],
        "refused": found["refused"],
        "wrong": wrong,
        "seconds": round(slowest, 2),
        "MiB": round(growth),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS), default=None)
    parser.add_argument("--keep", type=pathlib.Path, default=None)
    options = parser.parse_args()
    keep = options.keep or pathlib.Path(tempfile.mkdtemp(prefix="jaxseg-fuzz-"))
    rows = []
    for name in [options.only] if options.only else READERS:
        rows.append(run(name, options.seed, options.count, keep))
        if len(rows) == 1:
            print(" ".join(f"{title:>12}" for title in rows[0]))
        print(" ".join(f"{value:>12}" for value in rows[-1].values()), flush=True)
    print(json.dumps({"seed": options.seed, "rows": rows}))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
