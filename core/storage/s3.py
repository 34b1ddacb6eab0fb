"""Objects in an S3-compatible service, over obstore.

A streamed object is a multipart upload that becomes visible with its last request; an exception on
the way aborts it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import S3Store as Remote

from core.errors import Conflict, NotFound, Unavailable
from core.settings import Settings
from core.storage.buffers import HEAD_BYTES, Aligned, at_start, make_buffer
from core.storage.files import write_file
from core.storage.keys import check_key
from core.storage.relay import relay
from core.storage.store import CHUNK_BYTES, Stored, refuse_large

# part of a multipart upload; S3 allows 10,000 of them: 80 GB
_PART_BYTES = 8 * 1024 * 1024


class S3Store:
    """``ObjectStore`` over one prefix of a bucket."""

    def __init__(self, remote: Remote) -> None:
        """Take a client.

        Args:
            remote: obstore's client, bound to bucket and prefix.
        """
        self._remote = remote

    def put_bytes(self, key: str, data: bytes) -> Stored:
        """Store an object; an existing one is replaced whole.

        Args:
            key: Where.
            data: The bytes.

        Returns:
            What was stored.
        """
        check_key(key)
        with _translated():
            obstore.put(self._remote, key, data)
        return _stored(key, data)

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> Stored:
        """Store an object of any size.

        Args:
            key: Where.
            chunks: The bytes; when it raises, nothing is stored.

        Returns:
            What was stored.
        """
        check_key(key)
        digest = hashlib.sha256()
        size = 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield bytes(chunk)

        def put(pieces: Iterator[bytes]) -> None:
            obstore.put(self._remote, key, pieces, chunk_size=_PART_BYTES, max_concurrency=2)

        with _translated():
            relay(counted(), put)
        return Stored(key, size, digest.hexdigest())

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
        check_key(key)
        try:
            with _translated():
                obstore.put(self._remote, key, data, mode="create")
        except AlreadyExistsError:
            if self.get_bytes(key) != data:
                message = f"another object is stored under {key}"
                raise Conflict(message, code="object_exists") from None
            return self.put_bytes(key, data)  # only a write renews its time
        return _stored(key, data)

    def get_bytes(self, key: str) -> bytes:
        """Read an object.

        Args:
            key: Where.

        Returns:
            Its bytes.
        """
        check_key(key)
        with _translated(key):
            return bytes(obstore.get(self._remote, key).bytes())

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned = at_start) -> memoryview:
        """Read an object into memory that may be written to.

        Args:
            key: Where.
            most_bytes: The largest object that is read.
            aligned: Which byte of it is to be aligned.

        Returns:
            Its bytes.
        """
        check_key(key)
        with _translated(key):
            found = obstore.get(self._remote, key)
            refuse_large(key, found.meta["size"], most_bytes)
            read = memoryview(found.bytes())
        content = make_buffer(len(read), aligned=aligned(bytes(read[:HEAD_BYTES])))
        content[:] = read
        return content

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
        check_key(key)
        with _translated(key):
            # a range of an empty object is refused
            found = obstore.get(
                self._remote, key, options={"range": {"offset": from_byte}} if from_byte else None
            )
            pieces = iter(found.stream(min_chunk_size=chunk_bytes))
        return _recut(pieces, chunk_bytes, lambda: _translated(key))

    def exists(self, key: str) -> bool:
        """Tell whether there is an object.

        Args:
            key: Where.

        Returns:
            True when it is complete.
        """
        check_key(key)
        try:
            with _translated(key):
                obstore.head(self._remote, key)
        except NotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error.

        Args:
            key: Where.
        """
        check_key(key)
        try:
            with _translated(key):
                obstore.delete(self._remote, key)
        except NotFound:
            return

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
            seconds: Least age, by the service's clock against ours.

        Yields:
            Keys, sorted.
        """
        until = datetime.now(UTC) - timedelta(seconds=seconds)
        yield from sorted(key for key, written_at in self._find(prefix) if written_at <= until)

    def delete_older(self, key: str, *, seconds: float) -> bool:
        """Remove an object that was last written so long ago.

        Args:
            key: Where.
            seconds: Least age.

        Returns:
            False when it is newer or missing.
        """
        check_key(key)
        try:
            with _translated(key):
                found = obstore.head(self._remote, key)
        except NotFound:
            return False
        if found["last_modified"] > datetime.now(UTC) - timedelta(seconds=seconds):
            return False
        self.delete(key)
        return True

    def _find(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Keys under a folder with the time at which they were written."""
        folder = check_key(prefix.rstrip("/")) if prefix else None
        found: list[tuple[str, datetime]] = []
        with _translated():
            for batch in obstore.list(self._remote, prefix=folder):
                found += [(entry["path"], entry["last_modified"]) for entry in batch]
        yield from found

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
        """Make sure that the bucket answers; ``Unavailable`` when it does not."""
        with _translated():
            next(iter(obstore.list(self._remote, prefix="ping")), None)


def open_s3(settings: Settings) -> S3Store:
    """Open the bucket that the settings name.

    Args:
        settings: The process's settings; without keys in them the environment's AWS credentials are
            used.

    Returns:
        The store; nothing has connected yet.
    """
    url = urlsplit(settings.storage_url)
    options: dict[str, Any] = {"region": settings.s3_region}
    if settings.s3_endpoint is not None:
        # services of one's own seldom have a name per bucket, and often no certificate
        options |= {"endpoint": settings.s3_endpoint, "virtual_hosted_style_request": False}
    if settings.s3_access_key_id is not None and settings.s3_secret_access_key is not None:
        options |= {
            "access_key_id": settings.s3_access_key_id.get_secret_value(),
            "secret_access_key": settings.s3_secret_access_key.get_secret_value(),
        }
    remote = Remote(
        url.netloc,
        prefix=url.path.strip("/") or None,
        client_options={
            "allow_http": (settings.s3_endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=60),
        },
        # the library's default goes on for three minutes
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
        **options,
    )
    return S3Store(remote)


def _stored(key: str, data: bytes) -> Stored:
    return Stored(key, len(data), hashlib.sha256(data).hexdigest())


def _recut(pieces: Iterator[Any], chunk_bytes: int, guard: Callable[[], Any]) -> Iterator[bytes]:
    while True:
        with guard():
            piece = next(pieces, None)
        if piece is None:
            return
        view = memoryview(piece)
        for start in range(0, len(view), chunk_bytes):
            yield bytes(view[start : start + chunk_bytes])


@contextmanager
def _translated(key: str | None = None) -> Iterator[None]:
    """Turn the service's troubles into ours; its address never reaches a caller.

    Raises:
        AlreadyExistsError: For ``put_new`` to decide.
        NotFound: There is no object under ``key``.
        Unavailable: The service is full, or does not answer.
    """
    try:
        yield
    except AlreadyExistsError:
        raise
    except (NotFoundError, FileNotFoundError) as error:
        if key is None:
            message = "the storage bucket does not exist"
            raise Unavailable(message, code="storage_unavailable") from error
        message = f"no object {key}"
        raise NotFound(message, code="object_not_found") from error
    except (BaseError, OSError) as error:
        if "StorageFull" in str(error) or "QuotaExceeded" in str(error):
            message = "the object storage is full; nothing was stored"
            raise Unavailable(message, code="storage_full", retry_after_seconds=60) from error
        message = "the object storage does not answer"
        raise Unavailable(message, code="storage_unavailable") from error
