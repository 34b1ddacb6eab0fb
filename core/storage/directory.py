"""Objects as files in a folder."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import Conflict, NotFound, Unavailable
from core.storage.buffers import HEAD_BYTES, Aligned, at_start, make_buffer
from core.storage.disk import fault_of
from core.storage.files import (
    TEMPORARY_PREFIX,
    remove_empty,
    sync_folder,
    temporary_beside,
    write_all,
    write_file,
)
from core.storage.keys import check_key
from core.storage.store import CHUNK_BYTES, Stored, refuse_large

# an empty file fits on a full disk; one block does not
_PROBE = b"\0" * 4096


class DirectoryStore:
    """``ObjectStore`` over a local folder; many processes may share it."""

    def __init__(self, root: Path) -> None:
        """Name the folder; it is made at the first write.

        Args:
            root: The folder.
        """
        self._root = root

    def put_bytes(self, key: str, data: bytes) -> Stored:
        """Store an object; an existing one is replaced whole.

        Args:
            key: Where.
            data: The bytes.

        Returns:
            What was stored.
        """
        return self.put_stream(key, (data,))

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> Stored:
        """Store an object of any size.

        Args:
            key: Where.
            chunks: The bytes; when it raises, nothing is stored.

        Returns:
            What was stored.
        """
        path = self._path(key)
        with _translated(), self._tidied(path):
            size, sha256 = write_file(path, chunks)
        return Stored(key, size, sha256)

    def put_new(self, key: str, data: bytes) -> Stored:
        """Store an object unless there is one.

        Args:
            key: Where.
            data: The bytes.

        Returns:
            What is stored.

        Raises:
            Conflict: Other bytes are stored there.
        """
        path = self._path(key)
        with _translated(), self._tidied(path), temporary_beside(path) as (file, temporary):
            size, sha256 = write_all(file, (data,))
            temporary.chmod(0o644)
            try:
                # unlike a rename, a link fails when the name exists
                os.link(temporary, path)
            except FileExistsError:
                if self.get_bytes(key) != data:
                    message = f"another object is stored under {key}"
                    raise Conflict(message, code="object_exists") from None
                os.utime(path)
            sync_folder(path.parent)
        return Stored(key, size, sha256)

    def get_bytes(self, key: str) -> bytes:
        """Read an object.

        Args:
            key: Where.

        Returns:
            Its bytes.
        """
        path = self._path(key)
        with _translated(key):
            return path.read_bytes()

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned = at_start) -> memoryview:
        """Read an object into memory that may be written to.

        Args:
            key: Where.
            most_bytes: The largest object that is read.
            aligned: Which byte of it is to be aligned.

        Returns:
            Its bytes; read straight into the buffer, since pages that are touched first take as
            long as hashing them.
        """
        path = self._path(key)
        with _translated(key), path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            refuse_large(key, size, most_bytes)
            content = make_buffer(size, aligned=aligned(os.pread(file.fileno(), HEAD_BYTES, 0)))
            done = 0
            while done < size and (count := file.readinto(content[done:])):
                done += count
        return content[:done]

    def stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES, *, from_byte: int = 0
    ) -> Iterator[bytes]:
        """Read an object in pieces.

        Args:
            key: Where.
            chunk_bytes: Largest piece.
            from_byte: The first one that is read; one of its bytes, or 0.

        Returns:
            The pieces; of one version, even when the object is replaced meanwhile.
        """
        path = self._path(key)
        with _translated(key):
            file = path.open("rb")

        def pieces() -> Iterator[bytes]:
            with file, _translated(key):
                file.seek(from_byte)
                while piece := file.read(chunk_bytes):
                    yield piece

        return pieces()

    def exists(self, key: str) -> bool:
        """Tell whether there is an object.

        Args:
            key: Where.

        Returns:
            True when it is complete.
        """
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error.

        Args:
            key: Where.
        """
        path = self._path(key)
        with _translated():
            path.unlink(missing_ok=True)
            remove_empty(path.parent, below=self._root)

    def list(self, prefix: str) -> Iterator[str]:
        """Give the keys under a folder.

        Args:
            prefix: The folder; empty for everything.

        Yields:
            Keys, sorted.
        """
        yield from sorted(key for key, _ in self._find(prefix))

    def list_older(self, prefix: str, *, seconds: float) -> Iterator[str]:
        """Give the keys under a folder that were last written so long ago.

        Args:
            prefix: The folder; empty for everything.
            seconds: Least age.

        Yields:
            Keys, sorted.
        """
        until = time.time() - seconds
        yield from sorted(key for key, written_at in self._find(prefix) if written_at <= until)

    def delete_older(self, key: str, *, seconds: float) -> bool:
        """Remove an object that was last written so long ago.

        Args:
            key: Where.
            seconds: Least age.

        Returns:
            False when it is newer or missing.
        """
        path = self._path(key)
        with _translated(), suppress(FileNotFoundError):
            if path.stat().st_mtime <= time.time() - seconds:
                path.unlink()
                remove_empty(path.parent, below=self._root)
                return True
        return False

    def _find(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Keys under a folder with the Unix seconds at which they were written."""
        root = self._path(prefix.rstrip("/")) if prefix else self._root
        with _translated():
            for folder, _, names in os.walk(root, onerror=_unless_gone):
                for name in names:
                    path = Path(folder, name)
                    # it may have been removed since
                    with suppress(FileNotFoundError):
                        if not name.startswith(TEMPORARY_PREFIX):
                            yield path.relative_to(self._root).as_posix(), path.stat().st_mtime

    def fetch_to(self, key: str, path: Path) -> Stored:
        """Copy an object to a local file.

        Args:
            key: Where.
            path: The file, which appears complete or not at all.

        Returns:
            What was copied.
        """
        chunks = self.stream(key)
        with _translated():
            size, sha256 = write_file(path, chunks)
        return Stored(key, size, sha256)

    def ping(self) -> None:
        """Make sure that the folder can be written to, by writing a little and removing it."""
        with _translated(), temporary_beside(self._root / "ping") as (file, _):
            file.write(_PROBE)
            file.flush()

    @contextmanager
    def _tidied(self, path: Path) -> Iterator[None]:
        """Leave no folder of an object that could not be written."""
        try:
            yield
        except BaseException:
            remove_empty(path.parent, below=self._root)
            raise

    def _path(self, key: str) -> Path:
        return self._root.joinpath(*check_key(key).split("/"))


def _unless_gone(error: OSError) -> None:
    """Pass over a folder that is none, or was removed with its last file while we looked."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _translated(key: str | None = None) -> Iterator[None]:
    """Turn the file system's troubles into ours; paths never reach a caller.

    Raises:
        NotFound: There is no object under ``key``.
        Unavailable: The disk is full, or does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        if key is None:
            message = "the storage folder vanished"
            raise Unavailable(message, code="storage_unavailable") from error
        message = f"no object {key}"
        raise NotFound(message, code="object_not_found") from error
    except OSError as error:
        message, code, seconds = fault_of(error)
        raise Unavailable(message, code=code, retry_after_seconds=seconds) from error
