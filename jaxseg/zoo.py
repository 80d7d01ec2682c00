"""Public checkpoints by name: looked up, downloaded once, kept in the cache folder."""

import difflib
import os
from pathlib import Path

from jaxseg.checkpoints_table import CHECKPOINTS, Checkpoint
from jaxseg.downloads import amount, fetch
from jaxseg.errors import UserError


def cache_folder() -> Path:
    """$JAXSEG_CACHE or ~/.cache/jaxseg."""
    folder = os.environ.get("JAXSEG_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "jaxseg"


def find(name: str) -> Checkpoint:
    """The entry of that name. Raises UserError, with names that resemble it."""
    known = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"{name}: no such checkpoint; {hint}`python -m jaxseg.tools.download` lists them"
    )


def path_of(checkpoint: Checkpoint) -> Path:
    """Where it lies once downloaded, under the name that upstream gave it."""
    file = checkpoint.address.rpartition("/")[2]
    return cache_folder() / "checkpoints" / checkpoint.name / file


def get(name: str) -> Path:
    """The file of that checkpoint, downloaded unless it is there. Raises UserError."""
    checkpoint = find(name)
    label = f"{name} ({checkpoint.what}; licence {checkpoint.licence})"
    return fetch(
        checkpoint.address,
        path_of(checkpoint),
        label,
        sha256=checkpoint.sha256,
        size=checkpoint.size,
    )


def table() -> str:
    """All entries as a Markdown table."""
    rows = [("name", "what (mIoU in %)", "size", "licence", "sha256 begins")]
    for entry in CHECKPOINTS:
        size = amount(entry.size) if entry.size else "-"
        rows.append((f"`{entry.name}`", entry.what, size, entry.licence, entry.sha256 or "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
