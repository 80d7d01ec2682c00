"""What offline pages are made with: templates, pictures inside a page, its security policy."""

import base64
import functools
import hashlib

import jinja2


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this package; everything put in is escaped, what is missing is an error."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxseg"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    found.filters["digest"] = _digest
    return found


def data_url(kind: str, content: bytes) -> str:
    """A picture ("png", "jpeg") inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _digest(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
