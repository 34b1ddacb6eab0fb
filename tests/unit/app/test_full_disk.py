"""An upload for which the disk has no room is told so, at whatever place the room ends."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.schemas.datasets import DatasetCreate
from app.services import uploads
from app.services.multipart import FormReceiver
from core.errors import Unavailable

ROWS = [{"text": f"row number {place} " * 20, "label": "ab"[place % 2]} for place in range(200)]
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
SMALL_BYTES = 10_000


@contextmanager
def no_room() -> Iterator[None]:
    """For this process every file ends after some bytes, as on a disk that runs full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_form(tmp_path: Path) -> None:
    receiver = FormReceiver(
        b"b", folder=tmp_path, file_fields=frozenset({"file"}), max_bytes=10_000_000
    )
    with no_room(), pytest.raises(Unavailable) as caught:
        receiver.feed(HEAD + b"x" * 100_000)
    receiver.abandon()
    assert (caught.value.code, caught.value.status) == ("storage_full", 503)
    assert str(tmp_path) not in caught.value.message


def test_records_of_a_json_body(tmp_path: Path) -> None:
    body = DatasetCreate.model_validate({"records": ROWS})
    with no_room(), pytest.raises(Unavailable) as caught:
        uploads.write_records(body, folder=tmp_path, idempotency_key=None)
    assert caught.value.code == "storage_full"


def test_canonical_splits(tmp_path: Path) -> None:
    body = DatasetCreate.model_validate({"records": ROWS})
    upload = uploads.write_records(body, folder=tmp_path, idempotency_key=None)
    with no_room(), pytest.raises(Unavailable) as caught:
        uploads.validate(upload, folder=tmp_path / "splits")
    assert caught.value.code == "storage_full"
