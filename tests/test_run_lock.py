"""One run per folder, however the holder of the lock ends."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from jaxseg.errors import UserError
from jaxseg.run_lock import LOCK, run_lock

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import subprocess, sys
from jaxseg.run_lock import run_lock
with run_lock(sys.argv[1]):
    child = [sys.executable, "-c", "import time; time.sleep(100)"]
    print(subprocess.Popen(child, stdout=subprocess.DEVNULL).pid, flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_told_who_holds_it(tmp_path):
    with run_lock(tmp_path / "new"):
        with pytest.raises(UserError) as raised:
            with run_lock(tmp_path / "new"):
                pass
    message = str(raised.value)
    assert f"in use by process {os.getpid()} on {socket.gethostname()}, since 20" in message
    assert f"{tmp_path / 'new'}: " in message and "another --workdir" in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, UserError])
def test_it_is_free_again_however_the_run_ends(tmp_path, error):
    for _ in range(2):
        try:
            with run_lock(tmp_path):
                if error is not None:
                    raise error("the run")
        except (KeyboardInterrupt, UserError) as raised:
            assert type(raised) is error  # not that of the lock
            assert "in use" not in str(raised)


def test_kill_frees_it_although_a_child_lives_on(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        child = int(holder.stdout.readline())
        with pytest.raises(UserError, match=f"process {holder.pid} on "):
            with run_lock(tmp_path):
                pass
        holder.kill()
        holder.wait()
    try:
        os.kill(child, 0)  # lives
        assert (tmp_path / LOCK).read_text().startswith(f"process {holder.pid} ")  # stale, harmless
        with run_lock(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = False
    with run_lock(tmp_path):
        entered = True
    out = capsys.readouterr().out
    assert (
        entered and out.startswith("note: ") and os.strerror(code) in out and str(tmp_path) in out
    )


@pytest.mark.parametrize("error", [BlockingIOError, PermissionError])
def test_both_answers_of_a_server_mean_taken(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise error(errno.EACCES, "taken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="in use by another process"):
        with run_lock(tmp_path):
            pass


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*: cannot be written to .*; .*another --workdir"):
        with run_lock(tmp_path / "file" / below):
            pass


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="cannot be written to .No space left"):
        with run_lock(tmp_path):
            pass
