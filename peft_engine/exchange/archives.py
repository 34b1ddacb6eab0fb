"""Archives from strangers: zip and tar, unpacked without trusting a name, a size or a link."""

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from peft_engine.exchange.findings import Findings

MAX_MEMBERS = 200
"""An adapter has some ten files."""
MAX_DEPTH = 4
_CHUNK_BYTES = 1 << 20
_MAX_RATIO = 200
"""Zeros compress a thousandfold; weights hardly at all."""
_RATIO_FREE_BYTES = 16 << 20
"""Below so many bytes the ratio does not matter: small configurations compress well."""

_SAFE_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+ @()[]"
)

_Member = tuple[str, int, bool, IO[bytes] | None]
"""Name, announced size in bytes, whether it is a plain file, and its content."""


def unpack(archive: Path, folder: Path, *, max_bytes: int, found: Findings) -> None:
    """Unpack an archive into an empty folder.

    A single ``.safetensors`` file is no archive and is taken as it is.

    Args:
        archive: The file.
        folder: An empty folder.
        max_bytes: The most bytes that all files together may have.
        found: Told what is wrong; the folder is of no use then.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _unpack(_of_zip(zipped), archive, folder, max_bytes, found)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                _unpack(_of_tar(tarred), archive, folder, max_bytes, found)
        elif _is_safetensors(archive):
            (folder / "delta.safetensors").symlink_to(archive.resolve())
        else:
            found.refuse("bad_archive", "is neither zip, tar nor safetensors", "file")
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, NotImplementedError) as error:
        found.refuse("bad_archive", f"cannot be unpacked ({type(error).__name__})", "file")
    except RuntimeError:
        found.refuse("bad_archive", "is encrypted", "file")


def pack(folder: Path, archive: Path) -> None:
    """Pack the files of a folder; the same files give the same bytes.

    Args:
        folder: The folder, without folders inside.
        archive: The zip file to write. Weights are stored as they are: they do not compress.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, allowZip64=True) as zipped:
        for path in sorted(folder.iterdir()):
            # the earliest time that a zip can name, so that a clock changes nothing
            entry = zipfile.ZipInfo(path.name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, zipped.open(entry, "w", force_zip64=True) as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)


def _unpack(
    members: Iterator[_Member], archive: Path, folder: Path, max_bytes: int, found: Findings
) -> None:
    left, packed = max_bytes, archive.stat().st_size
    for number, (name, _, is_plain, content) in enumerate(members):
        if number >= MAX_MEMBERS:
            found.refuse("bad_archive", f"holds more than {MAX_MEMBERS} files", "file")
            return
        path = _safe_path(name)
        if path is None or not is_plain:
            shown = "is a link or a device" if path is not None else "leads out of the archive"
            found.refuse("bad_archive", shown, name[:200])
            return
        if content is None:
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            found.refuse("bad_archive", "stands twice in the archive", name[:200])
            return
        with target.open("xb") as file:
            while chunk := content.read(_CHUNK_BYTES):
                left -= len(chunk)
                used = max_bytes - left
                if left < 0 or used > max(_RATIO_FREE_BYTES, packed * _MAX_RATIO):
                    found.refuse("bad_archive", "unpacks to more bytes than are taken", name[:200])
                    return
                file.write(chunk)


def _of_zip(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for entry in zipped.infolist():
        mode = entry.external_attr >> 16
        is_plain = not mode or stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)
        if entry.is_dir() or not is_plain:
            yield entry.filename, 0, is_plain, None
        else:
            with zipped.open(entry) as content:
                yield entry.filename, entry.file_size, True, content


def _of_tar(tarred: tarfile.TarFile) -> Iterator[_Member]:
    for entry in tarred:
        is_plain = entry.isreg() or entry.isdir()
        content = tarred.extractfile(entry) if entry.isreg() else None
        yield entry.name, entry.size, is_plain, content


def _safe_path(name: str) -> PurePosixPath | None:
    """A relative path of plain names; None for one that could lead elsewhere."""
    pieces = [piece for piece in name.split("/") if piece not in ("", ".")]
    plain = all(piece != ".." and _SAFE_CHARACTERS.issuperset(piece) for piece in pieces)
    if not plain or name.startswith("/") or len(pieces) > MAX_DEPTH or len(name) > 500:
        return None
    return PurePosixPath(*pieces)


def _is_safetensors(path: Path) -> bool:
    """Length of a header in 8 bytes, then its JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length < path.stat().st_size
