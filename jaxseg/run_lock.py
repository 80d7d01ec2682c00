"""One training per folder: a lock that belongs to a process and ends with it, however it ends.

Without it a second run would delete the save that the first is writing, and both would append to
one log. ``flock`` is used because the kernel drops it at any death, a kill -9 too: no stale lock is
ever to be removed by hand. It belongs to an open file, which is not inherited by programs that the
process starts, so that a program it leaves behind does not hold it.

On NFS, Linux turns flock into a lock on the server, which then holds between machines. A mount
without locks (``nolock``) or a file system that has none either locks for this machine alone or
answers with an error; then a note is printed and the run goes on unprotected.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from jaxseg.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def run_lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold ``workdir``, which is made if need be. Several processes of one run take it once.

    Raises UserError: another process holds it (its number, machine and start are named), or
    ``workdir`` cannot be written to.
    """
    folder = pathlib.Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        _take(lock, folder)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)  # the file stays: who removes it may remove another's lock


def _take(lock: int, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS may say "permission" for "taken"
        holder = os.pread(lock, 300, 0).decode(errors="replace") or "another process"
        raise UserError(
            f"{folder}: in use by {holder}; wait for it, stop it or name another --workdir"
        ) from None
    except OSError as error:
        print(
            f"note: {folder / LOCK}: no locks on this file system ({error.strerror}); "
            f"make sure that nothing else trains in this folder"
        )


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written to ({error.strerror}); mend that or name another --workdir"
    )
