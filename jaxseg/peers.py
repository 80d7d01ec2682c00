"""The processes of one run hold a connection to process 0 each, so that none outlives the others.

The kernel closes a connection at any death of its process, a kill -9 too, and whoever fails says
why before it leaves: all others end at once, with one line. A machine that falls silent and a
process that is stopped are not noticed here.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from typing import NamedTuple, TextIO

from jaxseg.errors import UserError

ARRIVE = 300.0  # seconds until all must have come: machines of a cluster do not start at once
LEAVE = 10.0  # seconds that process 0 gives the others to read why it ends
_READY, _BYE = "ready", "bye"
_LINE = 2000  # characters of a message


class Peer(NamedTuple):
    """A connection to another process; ``name`` is for people."""

    name: str
    connection: socket.socket
    lines: TextIO

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # it may have gone
            self.connection.sendall(f"{' '.join(text.split())[: _LINE - 1]}\n".encode())

    def hear(self) -> str:
        """The next line; "" if there is none, because it has gone."""
        try:
            return self.lines.readline(_LINE).strip()
        except OSError:
            return ""

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


def meet(host: str, port: int, count: int, index: int) -> list[Peer]:
    """Waits for all ``count`` processes: process 0 listens at ``port``, the others call it there.

    Process 0 gets connections to all others, each of the others one to process 0.
    Raises UserError: ``port`` or the next one is taken, a process does not come within `ARRIVE`
    seconds, comes with another count, or with a number that has come already.
    """
    found: list[Peer] = []
    try:
        if index == 0:
            _listen(found, port, count)
        else:
            _call(found, host, port, f"jaxseg {count} {index} {socket.gethostname()}")
    except UserError as error:
        for peer in found:
            if index == 0:
                peer.say(str(error))
            peer.close()
        raise
    return found


def _listen(found: list[Peer], port: int, count: int) -> None:
    deadline = time.monotonic() + ARRIVE
    missing = set(range(1, count))
    try:
        _server(port + 1).close()  # jax's own: it would crash if that were taken
        server = _server(port)
    except OSError as error:
        raise UserError(
            f"--coordinator: port {port} or {port + 1}: {error.strerror}; name another"
        ) from None
    with server:
        print(f"process 0 waits at port {port} for {len(missing)} more", flush=True)
        while missing:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise UserError(
                    f"--coordinator: process {', '.join(map(str, sorted(missing)))} did not come "
                    f"to port {port} within {ARRIVE:.0f} s"
                ) from None
            connection.settimeout(5)
            stranger = Peer("", connection, connection.makefile(errors="replace"))
            hello = re.fullmatch(r"jaxseg (\d{1,6}) (\d{1,6}) (\S+)", stranger.hear())
            if not hello:  # somebody who looks for open ports
                stranger.close()
                continue
            theirs, number, name = int(hello[1]), int(hello[2]), f"process {hello[2]} on {hello[3]}"
            connection.settimeout(None)
            found.append(stranger._replace(name=name))
            if theirs != count:
                raise UserError(f"{name} has --num_processes={theirs}, but process 0 has {count}")
            if number not in missing:
                raise UserError(f"{name}: another one has come with --process_id={number}")
            missing.remove(number)
    for peer in found:
        peer.say(_READY)


def _server(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _call(found: list[Peer], host: str, port: int, hello: str) -> None:
    deadline = time.monotonic() + ARRIVE
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), port), timeout=5)
            break
        except OSError as error:  # not there yet; a name that is not known yet, too
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={host}:{port}: process 0 did not answer within {ARRIVE:.0f} s "
                    f"({error.strerror or error}); is it started, and the port open?"
                ) from None
            time.sleep(0.2)
    connection.settimeout(ARRIVE)
    first = Peer(f"process 0 on {host}", connection, connection.makefile(errors="replace"))
    found.append(first)
    first.say(hello)
    answer = first.hear()
    if answer != _READY:
        raise UserError(answer or f"--coordinator={host}:{port}: process 0 has gone")
    connection.settimeout(None)


class Bond:
    """While it holds, this process ends when another one dies or fails, and the reverse.

    ``peers``: from `meet`, or none: then the process only ends itself.
    """

    def __init__(self, peers: list[Peer], index: int):
        self._peers, self._index = peers, index
        self._ending = threading.Lock()  # never released
        self._threads = [
            threading.Thread(target=self._watch, args=(peer,), daemon=True) for peer in peers
        ]
        for thread in self._threads:
            thread.start()

    def release(self) -> None:
        """From here on everybody may leave."""
        for peer in self._peers:
            peer.say(_BYE)

    def fail(self, reason: str) -> None:
        """End all processes, this one with exit code 2 and without any clean-up: does not return.

        An exit in the usual way would wait for those that wait for this one.
        """
        self._end(reason, f"process {self._index} on {socket.gethostname()}: {reason}")
        threading.Event().wait()  # another thread is ending this process

    def _watch(self, peer: Peer) -> None:
        text = peer.hear()
        if text != _BYE:
            text = text or (
                f"{peer.name} has died (killed, out of memory or crashed: see its own output); "
                f"start all again, a training with --config.resume=True"
            )
            self._end(text, text)

    def _end(self, here: str, there: str) -> None:
        if not self._ending.acquire(blocking=False):
            return
        print(f"error: {' '.join(here.split())}", file=sys.stderr, flush=True)
        for peer in self._peers:
            peer.say(there)
        if self._index == 0:  # jax aborts in all others as soon as process 0 has gone
            deadline = time.monotonic() + LEAVE
            for thread in set(self._threads) - {threading.current_thread()}:
                thread.join(max(deadline - time.monotonic(), 0))
        sys.stdout.flush()
        os._exit(2)
