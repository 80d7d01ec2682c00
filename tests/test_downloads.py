"""Downloads from a server on this machine that drops, lies, redirects and stalls as told."""

import contextlib
import hashlib
import http.server
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import downloads, web
from jaxseg.downloads import PAUSES, fetch
from jaxseg.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(250_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html>please log in</html>"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        act = self.server.plan.pop(0) if self.server.plan else {}
        act(self) if callable(act) else self.send(**act)

    def send(
        self,
        *,
        content=None,
        ranges=True,
        shift=0,
        cut=None,
        reset=False,
        wait=None,
        length=True,
        headers=(("ETag", '"v1"'),),
    ):
        """The file, or its part that is asked for; ``cut``: how many bytes before it stops.

        shift: by how much a part starts too late. wait: what must happen before the rest.
        """
        content = self.server.content if content is None else content
        headers = dict(headers)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        held = self.headers.get("If-Range")
        if span and held is not None and held not in headers.values():
            span = None
        start = int(span[1]) + shift if span else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length:
            self.send_header("Content-Length", str(len(content) - start))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        end = len(content) if cut is None else start + cut
        self.wfile.write(content[start:end])
        if wait:
            wait.wait(20)
            self.wfile.write(content[end:])
        if reset:  # a closed socket that lingers for no time resets the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_request(self, code="-", size="-"):
        self.server.said.append(code)

    def log_message(self, *args):
        pass


class Site(http.server.ThreadingHTTPServer):
    """``plan``: how to answer the next requests, keywords of `Handler.send` or a function.

    ``asked``, ``said``: the Range of every request, the status of every answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.plan, self.asked, self.said = CONTENT, [], [], []
        self.address = f"http://127.0.0.1:{self.server_port}/file.pth"

    def handle_error(self, request, client_address):
        pass  # a client that went away is what several tests are about


@contextlib.contextmanager
def serving():
    with pytest.MonkeyPatch.context() as patch, Site() as site:
        patch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def site():
    with serving() as site:
        yield site


class Pauses(list):
    """Takes the pauses between tries down instead of making them."""

    def __call__(self, seconds):
        self.append(seconds)


def get(site, folder, **options):
    return fetch(site.address, folder / "file.pth", "a model", pause=Pauses(), **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave(folder, part, identity='"v1"'):
    """What an interrupted download leaves."""
    (folder / "file.pth.part").write_bytes(part)
    (folder / "file.pth.part.etag").write_bytes(identity.encode())


def test_a_file_arrives_once(site, tmp_path, capsys):
    path = get(site, tmp_path, sha256=SHA256, size=300_400)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["file.pth"]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"a model: 300 kB from {site.address}"
    assert last.startswith("MB  1/1")
    assert get(site, tmp_path, sha256=SHA256[:8]) == path
    assert site.asked == [None]


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 120_000), st.booleans()), max_size=4),
    left=st.integers(0, 299_999),
)
def test_drops_anywhere_are_survived(tmp_path_factory, cuts, left):
    folder = tmp_path_factory.mktemp("cuts")
    with serving() as site:
        site.plan = [{"cut": cut, "reset": reset} for cut, reset in cuts]
        leave(folder, CONTENT[:left])
        assert get(site, folder, sha256=SHA256).read_bytes() == CONTENT
    assert names(folder) == ["file.pth"]
    assert site.asked[0] == (f"bytes={left}-" if left else None)


def test_each_try_goes_on_from_the_last(site, tmp_path):
    site.plan = [{"cut": 1000}, {"cut": 500}, {"cut": 0}]
    get(site, tmp_path)
    assert site.asked == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]


@pytest.mark.parametrize(
    "answer",
    [
        {"headers": [("ETag", '"v2"')]},  # If-Range: sends all of the new file
        {"ranges": False},
        {"shift": 1},
        lambda handler: lies(handler, '"v2"'),  # a part of the new file in spite of If-Range
    ],
    ids=["changed", "no ranges", "other range", "unconditional"],
)
def test_a_part_that_does_not_fit_is_dropped(site, tmp_path, answer):
    leave(tmp_path, OTHER[:1000])
    site.plan = [answer]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked[0] == "bytes=1000-"


def lies(handler, etag):
    handler.headers.replace_header("If-Range", etag)
    handler.send(headers=[("ETag", etag)])


@pytest.mark.parametrize("identity", ["", 'W/"v1"', "\n\0", '"v1\r\nX: y"'])
def test_without_a_usable_identity_it_starts_again(site, tmp_path, identity):
    leave(tmp_path, OTHER[:1000], "" if identity.startswith("W/") else identity)
    site.plan = [{"headers": [("ETag", identity)] if identity.startswith("W/") else [], "cut": 9}]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, None]


def test_a_date_identifies_too(site, tmp_path):
    date = [("Last-Modified", "Mon, 21 Jun 2021 10:00:00 GMT"), ("ETag", 'W/"v1"')]
    site.plan = [{"headers": date, "cut": 9}, {"headers": date}]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=9-"]


def test_a_server_without_identities_that_always_drops_ends(site, tmp_path):
    site.plan = [{"headers": [], "cut": 900}] * 20
    with pytest.raises(UserError, match="no progress after 5 tries"):
        get(site, tmp_path)
    assert len(site.asked) == 6


def test_a_complete_part_is_only_checked(site, tmp_path):
    leave(tmp_path, CONTENT)
    assert get(site, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert site.asked == ["bytes=300000-"]


def test_a_part_longer_than_the_file_is_dropped(site, tmp_path):
    leave(tmp_path, CONTENT + b"more")
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == ["bytes=300004-", None]


def hub(handler):
    """Redirects as Hugging Face does: the digest in the redirection, none at the storage."""
    handler.send_response(302)
    handler.send_header("Location", handler.server.address)
    handler.send_header("X-Linked-ETag", f'"{SHA256}"')
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_the_digest_of_a_redirection_identifies_and_is_checked(site, tmp_path):
    site.plan = [hub, {"headers": [], "cut": 700}, hub, {"headers": []}]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, None, "bytes=700-", "bytes=700-"]
    assert site.said == [302, 200, 302, 206]
    site.plan = [hub, {"headers": [], "content": OTHER}]
    with pytest.raises(UserError, match=f"should begin {SHA256}"):
        fetch(site.address, tmp_path / "again.pth", "a model")


@pytest.mark.parametrize(
    "target", ["http://example.invalid/x", "file:///etc/passwd", "ftp://127.0.0.1/x"]
)
def test_redirections_lead_to_https_only(site, tmp_path, target):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    site.plan = [redirect]
    with pytest.raises(UserError, match="not https; refused|says 302"):
        get(site, tmp_path)
    assert names(tmp_path) == []


def test_from_https_not_even_to_this_machine():
    request = web.urllib.request.Request("https://example.invalid/x")
    with pytest.raises(UserError, match="not https"):
        web._Redirects().redirect_request(
            request, open("/dev/null", "rb"), 302, "", {}, "http://127.0.0.1/x"
        )


@pytest.mark.parametrize("address", ["http://example.invalid/x", "ftp://127.0.0.1/x", "x", ""])
def test_only_https(tmp_path, address):
    with pytest.raises(UserError, match="only https"):
        fetch(address, tmp_path / "x", "a model")
    assert names(tmp_path) == []


def test_a_wrong_digest_puts_the_file_aside(site, tmp_path):
    site.content = OTHER
    with pytest.raises(UserError, match=r"should begin .* put aside as .*file\.pth\.damaged"):
        get(site, tmp_path, sha256=SHA256[:8])
    assert names(tmp_path) == ["file.pth.damaged"]
    site.content = CONTENT
    get(site, tmp_path, sha256=SHA256[:8])
    assert names(tmp_path) == ["file.pth", "file.pth.damaged"]


@pytest.mark.parametrize(
    "stated, message",
    [({"sha256": "0" * 8}, "should begin 00000000"), ({"size": 310_000}, "instead of 310 kB")],
)
def test_a_wrong_file_put_there_by_hand_is_refused_and_left(site, tmp_path, stated, message):
    (tmp_path / "file.pth").write_bytes(CONTENT)
    with pytest.raises(UserError, match=f"{message}; delete it"):
        get(site, tmp_path, **stated)
    assert names(tmp_path) == ["file.pth"] and site.asked == []


def test_another_length_than_published_is_refused(site, tmp_path):
    with pytest.raises(UserError, match="300 kB instead of the published 310 kB"):
        get(site, tmp_path, size=310_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", [[], [("Content-Length", "-1")], [("Content-Length", "0")]])
def test_a_length_is_required(site, tmp_path, length):
    site.plan = [{"length": False, "headers": length}]
    with pytest.raises(UserError, match="no file of stated length"):
        get(site, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("left", [True, False])
def test_a_server_that_always_says_that_nothing_is_left_ends(site, tmp_path, left):
    def nothing(handler):
        handler.send_error(416, "\x1b[31mno")

    if left:
        leave(tmp_path, OTHER[:1000])
    site.plan = [nothing] * 9
    with pytest.raises(UserError, match=r"the server says 416 (\\x1b\[31m)?no") as raised:
        get(site, tmp_path)
    assert str(raised.value).isprintable() and len(site.asked) == 1 + left


def test_a_small_file_is_checked_too(site, tmp_path):
    site.content = CONTENT[:100]  # less than any buffer
    path = get(site, tmp_path, sha256=hashlib.sha256(CONTENT[:100]).hexdigest(), size=100)
    assert path.read_bytes() == CONTENT[:100]


def test_a_part_with_more_than_the_rest_is_cut(site, tmp_path):
    def too_much(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 1000-299999/300000")
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(CONTENT[1000:] + b"more")

    leave(tmp_path, CONTENT[:1000])
    site.plan = [too_much]
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_more_than_announced_is_not_read(site, tmp_path):
    site.plan = [{"headers": [("Content-Length", "1000")], "length": False}]
    assert get(site, tmp_path).read_bytes() == CONTENT[:1000]


def test_a_web_page_is_no_checkpoint_and_costs_no_part(site, tmp_path):
    leave(tmp_path, CONTENT[:1000])
    site.plan = [{"content": PAGE, "ranges": False}]
    with pytest.raises(UserError, match="web page"):
        get(site, tmp_path)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-"] * 2


def test_a_full_disk_is_noticed_before(site, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=299_000))
    with pytest.raises(UserError, match="300 kB to download but 299 kB free"):
        get(site, tmp_path)
    leave(tmp_path, CONTENT[:2000])
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_disk_that_fails_is_named(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*choose another folder"):
        fetch(site.address, tmp_path / "file" / "x.pth", "a model")


def test_it_gives_up_and_keeps_what_it_has(site, tmp_path):
    site.plan = [{"cut": 1000}] + [{"cut": 0}] * 20
    pauses = Pauses()
    with pytest.raises(UserError, match="no progress after 5 tries .* 1 kB are kept"):
        fetch(site.address, tmp_path / "file.pth", "a model", pause=pauses)
    assert pauses == list(PAUSES)
    assert (tmp_path / "file.pth.part").read_bytes() == CONTENT[:1000]


def refuse(code):
    return lambda handler: handler.send_error(code)


def test_a_busy_server_is_asked_again_a_missing_file_is_not(site, tmp_path):
    site.plan = [refuse(503), refuse(429)]
    get(site, tmp_path)
    assert len(site.asked) == 3
    site.plan = [refuse(404)]
    with pytest.raises(UserError, match="the server says 404"):
        fetch(site.address, tmp_path / "other.pth", "a model")
    assert len(site.asked) == 4


def test_a_silent_server_counts_as_dropped(site, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT", 0.1)
    over = threading.Event()
    site.plan = [lambda handler: over.wait(20), {"cut": 1000, "wait": over}]
    assert get(site, tmp_path).read_bytes() == CONTENT
    over.set()
    assert site.asked == [None, None, "bytes=1000-"]


def test_a_proxy_is_used_as_the_environment_says(site, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.server_port}")
    path = fetch("http://localhost:1/file.pth", tmp_path / "file.pth", "a model")
    assert path.read_bytes() == CONTENT and site.asked == [None]


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, all are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/file.pth"
        path, pauses = tmp_path / "cache" / "file.pth", Pauses()
        with pytest.raises(UserError) as caught:
            fetch(address, path, "a model", sha256="061f24f5", pause=pauses)
    for part in ("cannot reach 127.0.0.1 (", address, "begins 061f24f5", f"put it at {path}"):
        assert part in str(caught.value)
    assert pauses == [] and names(path.parent) == []


CHILD = """
import sys
from jaxseg.downloads import fetch
fetch(sys.argv[1], sys.argv[2], "child", sha256=sys.argv[3])
"""


def start_child(site, path):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, site.address, str(path), SHA256],
        cwd=pathlib.Path(downloads.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for_part(folder):
    """Until most of the 200 000 bytes that were sent are in the file and not only in a buffer."""
    part, end = folder / "file.pth.part", time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 180_000):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_process_that_ends_leaves_its_part(site, tmp_path, how):
    over = threading.Event()
    site.plan = [{"cut": 200_000, "wait": over}]
    with start_child(site, tmp_path / "file.pth") as child:
        wait_for_part(tmp_path)
        child.send_signal(how)
        child.communicate()
    over.set()
    left = (tmp_path / "file.pth.part").stat().st_size
    assert get(site, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert left > 180_000 and site.asked == [None, f"bytes={left}-"]


@pytest.mark.parametrize("killed", [False, True], ids=["finishes", "dies"])
def test_of_two_processes_one_downloads(site, tmp_path, killed):
    over = threading.Event()
    site.plan = [{"cut": 200_000, "wait": over}]
    with start_child(site, tmp_path / "file.pth") as first:
        wait_for_part(tmp_path)
        with start_child(site, tmp_path / "file.pth") as second:
            assert "waiting" in second.stdout.readline()
            if killed:
                first.kill()
            over.set()
            first.communicate()
            second.communicate()
    assert second.returncode == 0
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.pth"]
    assert site.asked[0] is None and len(site.asked) == 1 + killed
    if killed:
        assert int(re.fullmatch(r"bytes=(\d+)-", site.asked[1])[1]) > 180_000
