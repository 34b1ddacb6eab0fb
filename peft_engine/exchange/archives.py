"""Archives from strangers: zip and tar, unpacked without trusting a name, a size or a link."""

import bz2
import errno
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from peft_engine.exchange.findings import Findings

MAX_MEMBERS = 200
"""An adapter has some ten files."""
MAX_DEPTH = 4
_CHUNK_BYTES = 1 << 20
_MAX_RATIO = 200
"""Zeros compress a thousandfold; weights hardly at all."""
_RATIO_FREE_BYTES = 16 << 20
"""Below so many bytes the ratio does not matter: small configurations compress well."""

_LISTED_BYTES = 1 << 20
"""Of what stands in an archive beside its files: tarfile and zipfile read each piece of it whole,
as long as it says it is. Names of some ten files are a thousand bytes."""

_DECOMPRESSORS: Mapping[bytes, Callable[[Path], Any]] = MappingProxyType(
    {
        b"\x1f\x8b": gzip.open,
        b"BZh": bz2.open,
        b"\xfd7zXZ\0": lzma.open,
        b"]\0\0": lzma.open,
    }
)
"""By how a file begins; a plain tar begins with a name."""

_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RecursionError,
    ValueError,
)
"""What readers of archives raise on damaged ones, beside errors of the file system's kind."""
_DISK_AT_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of the file system that say nothing of the archive."""

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

    Raises:
        OSError: The disk is full or broken.
    """
    try:
        if zipfile.is_zipfile(archive):
            with archive.open("rb") as zipped, _Metered(zipped) as metered:
                _unpack(_of_zip(metered), archive, folder, max_bytes, found)
        elif _is_safetensors(archive):
            (folder / "delta.safetensors").symlink_to(archive.resolve())
        else:
            with _decompressed(archive) as tarred, _Metered(tarred) as metered:
                _unpack(_of_tar(metered), archive, folder, max_bytes, found)
    except (OSError, *_BROKEN) as error:
        if isinstance(error, OSError) and error.errno in _DISK_AT_FAULT:
            raise
        found.refuse(
            "bad_archive", f"is no whole zip, tar or safetensors ({type(error).__name__})", "file"
        )
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


class _Metered(io.BufferedIOBase):
    """A file of which only so many bytes may be read until more are allowed.

    Args:
        file: The file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _LISTED_BYTES

    def allow(self, count: int) -> None:
        """Let so many bytes be read from now on, and not what was left."""
        self._left = count

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file.

        Raises:
            ReadError: There is more than is allowed.
        """
        too_many = self._left + 1
        wanted = too_many if size is None or size < 0 else min(size, too_many)
        found = self._file.read(wanted)
        self._left -= len(found)
        if self._left < 0:
            raise tarfile.ReadError("there is too much beside the files")
        return found

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """As a file."""
        return True


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(8)
    found = (make for begin, make in _DECOMPRESSORS.items() if start.startswith(begin))
    opened: IO[bytes] = next(found, lambda path: path.open("rb"))(archive)
    return opened


def _of_zip(file: _Metered) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as zipped:
        for entry in zipped.infolist():
            mode = entry.external_attr >> 16
            is_plain = not mode or stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)
            if entry.is_dir() or not is_plain:
                yield entry.filename, 0, is_plain, None
            else:
                file.allow(entry.compress_size + _LISTED_BYTES)
                with zipped.open(entry) as content:
                    yield entry.filename, entry.file_size, True, content


def _of_tar(file: _Metered) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:") as tarred:
        while (entry := tarred.next()) is not None:
            is_plain = entry.isreg() or entry.isdir()
            content = tarred.extractfile(entry) if entry.isreg() else None
            file.allow(entry.size + _LISTED_BYTES)
            yield entry.name, entry.size, is_plain, content
            file.allow(_LISTED_BYTES)


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
