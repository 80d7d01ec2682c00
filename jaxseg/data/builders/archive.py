"""Reading the files of a data set as it was downloaded: a zip, a tar or the unpacked folder."""

import contextlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxseg.errors import UserError

BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)
_AGAIN = "download it again and compare its size"


@dataclass(frozen=True)
class Archive:
    """The members of one open archive. Nothing is ever written to disk under a member's name."""

    path: Path
    members: tuple[str, ...]
    read_member: Callable[[str], bytes]

    def read(self, member: str) -> bytes:
        """All bytes of one member.

        Raises UserError: the member is damaged (checksum, truncation) or encrypted.
        """
        try:
            return self.read_member(member)
        except (*BROKEN, NotImplementedError) as error:
            raise UserError(
                f"{self.path}: cannot read {member} ({_one_line(error)}): {_AGAIN}"
            ) from None

    def where(self, member: str) -> str:
        """How error messages name a member."""
        return f"{self.path}: {member}"

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        """{stem: member} of the files right inside ``folder``, wherever that folder lies.

        Sorted by stem; hidden files (also the ``._x`` that macOS adds) are left out.
        Raises UserError: two such folders hold a file of the same name.
        """
        found: dict[str, str] = {}
        for member in self.members:
            parent, _, file = member.rpartition("/")
            stem, ending = os.path.splitext(file)
            if not f"/{parent}".endswith(f"/{folder}") or ending.lower() != suffix:
                continue
            if file.startswith("."):
                continue
            if stem in found:
                raise UserError(
                    f"{self.path}: holds both {found[stem]} and {member}: keep one of the folders"
                )
            found[stem] = member
        return dict(sorted(found.items()))


@contextlib.contextmanager
def open_archive(folder: str | Path, names: tuple[str, ...]) -> Iterator[Archive]:
    """Opens the first that exists of ``name.zip``, ``name.tar`` and folder ``name`` in ``folder``.

    Raises UserError: none of them is there, or it is no readable zip or (uncompressed) tar.
    """
    candidates = [Path(folder) / f"{name}{end}" for name in names for end in (".zip", ".tar", "")]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        wanted = f"{names[0]}.zip, {names[0]}.tar or the folder {names[0]}"
        raise UserError(
            f"{folder}: no {wanted} there: download it (docs/datasets.md says where) "
            "or correct --archives"
        )
    with contextlib.ExitStack() as stack:
        try:
            archive = _open(path, stack)
        except BROKEN as error:
            raise UserError(
                f"{path}: not a readable zip, uncompressed tar or folder ({_one_line(error)}): "
                f"{_AGAIN}"
            ) from None
        yield archive


def _open(path: Path, stack: contextlib.ExitStack) -> Archive:
    if path.suffix == ".zip":
        packed = stack.enter_context(zipfile.ZipFile(path))
        return Archive(path, tuple(packed.namelist()), packed.read)
    if path.suffix == ".tar":
        # A compressed tar would be unpacked from its start again for every image.
        taped = stack.enter_context(tarfile.open(path, "r:"))
        files = {member.name: member for member in taped if member.isreg()}
        return Archive(path, tuple(files), lambda name: taped.extractfile(files[name]).read())
    files = [Path(at, name) for at, _, found in os.walk(path, followlinks=True) for name in found]
    names = tuple(file.relative_to(path).as_posix() for file in files)
    return Archive(path, names, lambda name: (path / name).read_bytes())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
