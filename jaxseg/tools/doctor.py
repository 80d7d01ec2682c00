"""One page on what could go wrong here: versions, devices, disks, caches, a run, a data set.

    python -m jaxseg.tools.doctor --config=configs/own_data.py --workdir=runs/mine

Every line says ok, warn (works, but) or bad, and what mends it. Exit code 1 when something is bad.
Uses no network and changes nothing. Checking a run reads its checkpoints from end to end.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import tempfile
from typing import NamedTuple

import jax
from absl import flags

from jaxseg import build, checkpoint, cli, model_dir, startup, zoo
from jaxseg.errors import UserError

OK, WARN, BAD = "ok", "warn", "bad"
# Release series that are supported; pip is told the same by requirements.txt.
SUPPORTED = {
    "jax": ("0.10", "0.11"),
    "jaxlib": ("0.10", "0.11"),
    "flax": ("0.12",),
    "orbax-checkpoint": ("0.12",),
}
_PYTHONS = ("3.11", "3.12")
_LITTLE_DISK, _NO_DISK = 5e9, 1e9  # bytes; a ViT-L's checkpoint has 3.7 GB
_LITTLE_MEMORY = 2e9


class Line(NamedTuple):
    """A finding. ``text`` ends with the mend unless ``level`` is ok."""

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.subject:22}  {self.text}"


def versions() -> list[Line]:
    """Python and the packages whose releases break things."""
    mine = platform.python_version()
    lines = [Line(OK, "python", mine)]
    if not mine.startswith(tuple(f"{series}." for series in _PYTHONS)):
        lines = [Line(WARN, "python", f"{mine} is untested; use {' or '.join(_PYTHONS)}")]
    for name, series in SUPPORTED.items():
        wanted = " or ".join(f"{s}.*" for s in series)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(Line(BAD, name, f"not installed; pip install '{name}=={series[-1]}.*'"))
            continue
        known = version.startswith(tuple(f"{s}." for s in series))
        mend = f" is not supported ({wanted}); pip install '{name}=={series[-1]}.*'"
        lines.append(Line(OK if known else BAD, name, version + ("" if known else mend)))
    return lines


def devices() -> list[Line]:
    """What jax computes on."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return [Line(BAD, "devices", f"{reason}; set JAX_PLATFORMS=cpu, or mend the driver")]
    kinds = sorted({device.device_kind for device in found})
    text = f"{len(found)} x {', '.join(kinds)} ({jax.default_backend()})"
    if jax.default_backend() == "cpu" and pathlib.Path("/dev/nvidiactl").exists():
        return [Line(WARN, "devices", f"{text}, but a GPU is here; pip install 'jax[cuda12]'")]
    return [Line(OK, "devices", text)]


def machine() -> list[Line]:
    """Cores, memory, huge pages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Line(OK, "cpu cores", str(cores)), *_memory(), *_huge_pages()]


def _memory() -> list[Line]:
    try:
        known = pathlib.Path("/proc/meminfo").read_text()
        free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", known)[1])
    except (OSError, TypeError):  # not Linux
        return []
    text = f"{free / 1e9:.1f} GB available"
    if free < _LITTLE_MEMORY:
        return [Line(WARN, "memory", f"{text}; end other programs, or lower train.batch_size")]
    return [Line(OK, "memory", text)]


def _huge_pages() -> list[Line]:
    try:
        offered = (
            "[madvise]" in pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        )
    except OSError:
        return []
    if not offered or jax.default_backend() != "cpu":
        return []
    if "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""):
        return [Line(OK, "huge pages", "asked for")]
    mend = "set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 to train faster (docs/performance.md)"
    return [Line(WARN, "huge pages", f"not asked for; {mend}")]


def disk(subject: str, path: pathlib.Path) -> Line:
    """Free space where ``path`` is or would be made."""
    there = _existing(path)
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free at {there}"
    if free < _LITTLE_DISK:
        return Line(BAD if free < _NO_DISK else WARN, subject, f"{text}; make room")
    return Line(OK, subject, text)


def compile_cache(folder: pathlib.Path) -> Line:
    """Compiled programs that are kept between runs."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    text = f"{len(files)} files, {size / 1e6:.1f} MB in {folder}"
    problem = unwritable(folder)
    if problem:
        mend = "set JAX_COMPILATION_CACHE_DIR, or every run compiles again"
        return Line(WARN, "compile cache", f"{text}, {problem}; {mend}")
    return Line(OK, "compile cache", text)


def unwritable(folder: pathlib.Path) -> str:
    """Why no file can be made in ``folder``, or in the folder it would be made in; "" = it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return f"cannot be written to ({error.strerror})"


def run(workdir: pathlib.Path) -> list[Line]:
    """A workdir: rights, checkpoints (every byte is read), the finished model."""
    problem = unwritable(workdir)
    mend = "mend its rights or name another --workdir"
    lines = [Line(BAD, "workdir", f"{workdir} {problem}; {mend}") if problem else
             Line(OK, "workdir", str(workdir) + ("" if workdir.exists() else " (not made yet)")),
             disk("workdir disk", workdir)]  # fmt: skip
    lines += _checkpoints(workdir / "checkpoints")
    if (workdir / model_dir.WEIGHTS).exists() or (workdir / model_dir.CONFIG).exists():
        try:
            stored = model_dir.load(str(workdir))
            text = f"{len(stored.arrays)} arrays, {len(stored.classes)} classes, sha256 intact"
            lines.append(Line(OK, model_dir.WEIGHTS, text))
        except UserError as error:
            lines.append(Line(BAD, model_dir.WEIGHTS, str(error)))
    return lines


def _checkpoints(folder: pathlib.Path) -> list[Line]:
    if not folder.is_dir():
        return []
    lines, health = [], checkpoint.inspect(folder)
    whole = [found for found in health if not found.damage]
    for found in health:
        score = "" if found.metric is None else f", score {found.metric:.4f}"
        text = f"whole{score}"
        if found.damage:
            mend = (
                f"--config.resume=True goes on from step {whole[-1].step}"
                if whole
                else "no other step is whole: train again in another --workdir"
            )
            text = f"damaged ({found.damage}); {mend}"
        level = OK if not found.damage else WARN if whole else BAD
        lines.append(Line(level, f"checkpoint {found.step}", text))
    if whole:
        scored = [(found.metric, found.step) for found in whole if found.metric is not None]
        best = max(scored)[1] if scored else "none has a score"
        lines.append(Line(OK, "checkpoints", f"newest {whole[-1].step}, best {best}"))
    for path in sorted(folder.glob("damaged_*")):
        text = f"{path} was put aside by an earlier start; remove it when you have looked at it"
        lines.append(Line(WARN, "checkpoints", text))
    if not health:
        lines.append(Line(WARN, "checkpoints", f"{folder} holds none; nothing to resume from"))
    return lines


def data(config) -> list[Line]:
    """Every split: how many images, and whether the first and the last can be read."""
    lines = []
    for which in ("train", "val", "test"):
        if not config.data.get(which):
            continue
        try:
            source = build.make_source(config, which)
            for index in {0, len(source) - 1}:
                source[index]
            text = f"{len(source)} images, {len(source.classes)} classes"
            lines.append(Line(OK, f"data {which}", f"{text}, first and last can be read"))
        except UserError as error:
            lines.append(Line(BAD, f"data {which}", str(error)))
    return lines


def _existing(path: pathlib.Path) -> pathlib.Path:
    """``path``, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def main(argv: list[str]) -> int:
    """Prints the page; 1 when any line is bad."""
    del argv
    startup.prepare()
    cache = pathlib.Path(jax.config.jax_compilation_cache_dir)
    lines = [*versions(), *devices(), *machine(), compile_cache(cache)]
    lines.append(disk("cache disk", zoo.cache_folder()))
    if flags.FLAGS.workdir:
        lines += run(pathlib.Path(flags.FLAGS.workdir))
    else:
        lines.append(disk("disk", pathlib.Path.cwd()))
    if flags.FLAGS.config is not None:
        lines += data(flags.FLAGS.config)
    for line in lines:
        print(line)
    counts = {level: sum(line.level == level for line in lines) for level in (WARN, BAD)}
    print(f"{counts[BAD]} bad, {counts[WARN]} to look at")
    return 1 if counts[BAD] else 0


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("workdir", "", "Folder of a training run, to check what is in it.")
    cli.run(main)
