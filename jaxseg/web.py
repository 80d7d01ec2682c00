"""A file on a web server, asked for from any byte on: the HTTP that `jaxseg.downloads` needs."""

import http.client
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import BinaryIO, NamedTuple

from jaxseg import __version__
from jaxseg.errors import UserError

TIMEOUT = 30.0  # seconds without a byte until a connection counts as dropped


class Dropped(Exception):
    """Nothing came, or less than announced; another try may succeed.

    ``unreachable``: not even a connection.
    """

    def __init__(self, reason, *, unreachable: bool = False):
        super().__init__(str(reason) or type(reason).__name__)
        self.unreachable = unreachable


class Answer(NamedTuple):
    """Bytes ``start`` to ``total`` of a file, to be read from ``body``.

    identity: what stays the same while the content does: "sha256:..." if the server states it, else
    its strong ETag, else its Last-Modified, else "" (then nothing can be resumed).
    """

    body: BinaryIO
    start: int
    total: int
    identity: str

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, at least one. Raises Dropped."""
        try:
            chunk = self.body.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise Dropped(error) from None
        if not chunk:
            raise Dropped("the connection ended early")
        return chunk


class Remote:
    """The file at ``address``. Raises UserError: not https (http is taken on this machine only)."""

    def __init__(self, address: str):
        if not _allowed(address):
            raise UserError(f"{address}: only https addresses are downloaded")
        self.address = address
        self.host = urllib.parse.urlsplit(address).hostname
        self._redirects = _Redirects()
        self._opener = urllib.request.build_opener(self._redirects)  # with the usual proxies

    def ask(self, start: int, identity: str) -> Answer:
        """From byte ``start`` on if the file still has that ``identity``, else all of it.

        Raises Dropped; UserError: refused, not there, or nothing of a stated length.
        """
        start = start if identity else 0
        request = urllib.request.Request(
            self.address, headers={"User-Agent": f"jaxseg/{__version__}"}
        )
        if start:
            request.add_header("Range", f"bytes={start}-")
            if not identity.startswith("sha256:"):
                request.add_header("If-Range", identity)
        self._redirects.linked = ""
        try:
            body = self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and start:  # nothing behind it: complete, or another file
                    if error.headers.get("Content-Range") == f"bytes */{start}":
                        return Answer(io.BytesIO(), start, start, identity)
                    return self.ask(0, "")
                raise self._refusal(error.code, error.reason) from None
        except urllib.error.URLError as error:
            raise Dropped(error.reason, unreachable=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise Dropped(error) from None
        new = _identity(body.headers, self._redirects.linked)
        if body.status == 206 and start:
            span = body.headers.get("Content-Range", "")
            span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", span)
            if span and int(span[1]) == start and new in ("", identity):
                return Answer(body, start, int(span[2]), identity)
            body.close()
            return self.ask(0, "")
        length = body.headers.get("Content-Length", "")
        if body.status != 200 or not re.fullmatch(r"[1-9][0-9]*", length):
            body.close()
            raise UserError(
                f"{self.address}: the answer is no file of stated length (status {body.status}, "
                f"length {length or 'missing'}); see in a browser what is there"
            )
        return Answer(body, 0, int(length), new)

    def _refusal(self, code: int, reason: str) -> Exception:
        if code in (408, 425, 429) or code >= 500:
            return Dropped(f"{code} {reason}")
        return UserError(
            f"{self.address}: the server says {code} {reason}; see in a browser whether it has "
            f"moved or wants a log-in"
        )


def clean(identity: str) -> str:
    """As it is if it may stand in a header, else "": what was stored can be any bytes by now."""
    return identity if identity.isascii() and identity.isprintable() else ""


def _identity(headers, linked: str) -> str:
    digest = re.fullmatch(r'"?([0-9a-f]{64})"?', linked)
    if digest:
        return f"sha256:{digest[1]}"
    etag = headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return clean(etag)
    return clean(headers.get("Last-Modified", ""))


def _allowed(address: str, plain: bool = True) -> bool:
    """https, or http on this machine (``plain``)."""
    parts = urllib.parse.urlsplit(address)
    here = plain and parts.hostname in ("localhost", "127.0.0.1")
    return bool(parts.hostname) and (parts.scheme == "https" or (here and parts.scheme == "http"))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to https only, and keeps the digest that a redirection states (``linked``).

    Hugging Face names the sha256 of a large file there; the storage it redirects to may send
    neither ETag nor date.
    """

    linked = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _allowed(newurl, plain=req.type == "http"):
            fp.close()
            raise UserError(f"{req.full_url}: redirects to {newurl}, which is not https; refused")
        self.linked = headers.get("X-Linked-ETag", self.linked)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
