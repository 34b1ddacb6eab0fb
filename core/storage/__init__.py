"""Object storage: a folder or an S3-compatible bucket behind one protocol."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.settings import Settings
from core.storage.buffers import Aligned, at_start
from core.storage.directory import DirectoryStore
from core.storage.disk import disk_faults_told
from core.storage.files import file_pieces
from core.storage.keys import (
    batch_part_key,
    checkpoint_key,
    dataset_key,
    delta_key,
    derived_key,
    file_key,
    part_key,
    upload_key,
)
from core.storage.removal import remove_objects
from core.storage.s3 import open_s3
from core.storage.scratch import is_at_work, make_scratch, remove_leftovers
from core.storage.splits import keep_split, nearest_mark
from core.storage.store import ObjectStore, Stored

__all__ = [
    "Aligned",
    "ObjectStore",
    "Stored",
    "at_start",
    "batch_part_key",
    "checkpoint_key",
    "dataset_key",
    "delta_key",
    "derived_key",
    "disk_faults_told",
    "file_key",
    "file_pieces",
    "is_at_work",
    "keep_split",
    "make_scratch",
    "nearest_mark",
    "open_store",
    "part_key",
    "remove_leftovers",
    "remove_objects",
    "upload_key",
]


def open_store(settings: Settings) -> ObjectStore:
    """Open the storage that the settings name.

    Args:
        settings: The process's settings.

    Returns:
        The store; nothing has been touched yet.

    Raises:
        ValueError: ``storage_url`` is neither ``file:///folder`` nor ``s3://bucket/prefix``.
    """
    url = urlsplit(settings.storage_url)
    if url.scheme == "file" and url.netloc in {"", "localhost"} and url.path:
        return DirectoryStore(Path(unquote(url.path)))
    if url.scheme == "s3" and url.netloc:
        return open_s3(settings)
    message = f"storage_url={settings.storage_url!r}; use file:///folder or s3://bucket/prefix"
    raise ValueError(message)
