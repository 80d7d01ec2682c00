"""One file from the web to disk: resumed, checked, and never half there."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxseg.errors import UserError
from jaxseg.progress import Progress
from jaxseg.web import Answer, Dropped, Remote, clean

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try in a row that brings nothing
CHUNK = 1 << 20
_WEB_PAGE = re.compile(rb"\s*<[!?a-zA-Z][a-zA-Z-]")  # HTML, or the XML that buckets put errors in


def fetch(
    address: str,
    path: str | os.PathLike,
    label: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """The file at ``address`` as ``path``, downloaded unless it is there; prints ``label`` first.

    sha256: hexadecimal, the whole digest or its beginning. size: bytes, right to 1 %, as pages
    round them. What has arrived lies in ``path``.part until all of it is there and checked: an
    interrupted download goes on from it. Of several processes one downloads, the others wait.
    Raises UserError: no network, refused, not the file that was published, no space.
    """
    path = Path(path)
    remote = Remote(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path) as part:
            if part is None:
                _check_present(path, address, sha256, size)
            else:
                stated = _transfer(remote, path, part, label, sha256, size, pause)
                _finish(address, path, part, sha256 or stated)
    except OSError as error:  # of the disk: those of the network never come this far
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            f"folder"
        ) from None
    return path


def sha256_of(path: str | os.PathLike) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def amount(size: int) -> str:
    """Bytes for people: "1.31 GB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[BinaryIO | None]:
    """The open file of what has arrived, locked for this process, or None once ``path`` is there.

    The lock is on the part itself: whoever waited for it finds, after a finished download, that its
    file now has another name, and looks again. The system frees it when a process dies.
    """
    part = _beside(path, ".part")
    while not path.exists():
        with open(part, "a+b") as file:
            _lock(file, path)
            if not _is_still(file, part):
                continue
            try:
                yield file
            finally:
                if file.seek(0, os.SEEK_END) == 0 and _is_still(file, part):
                    part.unlink()
                    _beside(path, ".part.etag").unlink(missing_ok=True)
            return
    yield None


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{path.name}: another process is downloading it; waiting", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # some network disks have no locks: better without than not at all


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _transfer(remote: Remote, path, part, label, sha256, size, pause) -> str | None:
    """Fills ``part`` to its end, however often the connection drops; the digest the server states.

    Gives up after len(PAUSES) tries in a row that brought nothing new, and at once if the server
    could not be reached the first time: then there is no network.
    """
    note = _beside(path, ".part.etag")
    failures = furthest = 0
    progress = None
    with contextlib.ExitStack() as stack:
        while True:
            start = part.seek(0, os.SEEK_END)
            try:
                answer = remote.ask(start, _noted(note))
                with answer.body:
                    _check_total(remote.address, path.parent, answer, size)
                    if progress is None:
                        print(f"{label}: {amount(answer.total)} from {remote.address}", flush=True)
                        progress = Progress(
                            _megabytes(answer.total), "MB", start=_megabytes(answer.start)
                        )
                        stack.enter_context(progress)
                    _copy(remote.address, answer, part, note, progress)
                kind, _, digest = answer.identity.partition(":")
                return digest if kind == "sha256" else None
            except Dropped as error:
                if error.unreachable and progress is None:
                    known = f" (its sha256 begins {sha256})" if sha256 else ""
                    raise UserError(
                        f"cannot reach {remote.host} ({error}); without a network, get "
                        f"{remote.address}{known} elsewhere and put it at {path}"
                    ) from None
                arrived = part.seek(0, os.SEEK_END)
                failures = 0 if arrived > furthest else failures + 1
                furthest = max(arrived, furthest)
                if failures == len(PAUSES):
                    raise UserError(
                        f"{remote.host}: no progress after {failures} tries ({error}); "
                        f"{amount(arrived)} are kept, the same command goes on from there"
                    ) from None
                pause(PAUSES[failures])


def _noted(note: Path) -> str:
    return clean(note.read_bytes().decode("latin-1")) if note.exists() else ""


def _copy(address: str, answer: Answer, part: BinaryIO, note: Path, progress: Progress) -> None:
    """Appends the answer; if it is the whole file, instead of what has arrived before."""
    done = answer.start
    while done < answer.total:
        chunk = answer.read(min(CHUNK, answer.total - done))
        if done == 0:
            if _WEB_PAGE.match(chunk):
                raise UserError(
                    f"{address}: the server sent a web page instead of the file; see in a browser "
                    f"what it says (a log-in, a proxy, an error)"
                )
            part.truncate(0)
            note.write_text(answer.identity, encoding="ascii")
        part.write(chunk)
        done += len(chunk)
        progress.update(_megabytes(done))


def _check_total(address: str, folder: Path, answer: Answer, size: int | None) -> None:
    if size is not None and abs(answer.total - size) > size // 100:
        raise UserError(
            f"{address}: {amount(answer.total)} instead of the published {amount(size)}; this is "
            f"not the file, nothing was downloaded"
        )
    free = shutil.disk_usage(folder).free
    if answer.total - answer.start > free:
        raise UserError(
            f"{folder}: {amount(answer.total - answer.start)} to download but {amount(free)} free; "
            f"make room or choose another folder"
        )


def _finish(address: str, path: Path, part: BinaryIO, sha256: str | None) -> None:
    part.flush()
    os.fsync(part.fileno())
    arrived = _beside(path, ".part")
    digest = sha256_of(arrived) if sha256 else ""
    _beside(path, ".part.etag").unlink(missing_ok=True)
    if sha256 and not digest.startswith(sha256):
        damaged = _beside(path, ".damaged")
        os.replace(arrived, damaged)
        raise UserError(
            f"{address}: the sha256 is {digest} but should begin {sha256}; the file was put aside "
            f"as {damaged}, download again; if that brings the same, upstream has another file now"
        )
    os.replace(arrived, path)


def _check_present(path: Path, address: str, sha256: str | None, size: int | None) -> None:
    """A file that was there before, perhaps put there by hand."""
    have = path.stat().st_size
    if size is not None and abs(have - size) > size // 100:
        found = f"it has {amount(have)} instead of {amount(size)}"
    elif sha256 and not (digest := sha256_of(path)).startswith(sha256):
        found = f"its sha256 is {digest} but should begin {sha256}"
    else:
        return
    raise UserError(f"{path}: not the file of {address}: {found}; delete it and download again")


def _megabytes(size: int) -> int:
    return -(-size // 10**6)
