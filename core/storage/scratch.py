"""Folders that live as long as one piece of work, and what killed processes left behind.

A process that is killed removes nothing: without this, every interrupted upload would take up to
``max_upload_bytes`` of the disk for ever.
"""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.settings import Settings
from core.storage.files import TEMPORARY_PREFIX

ABANDONED_SECONDS = 24 * 3600.0
"""A folder that nothing was written to for so long belongs to nobody: longer than any upload,
validation or export rests between two writes."""


def make_scratch(data_dir: Path, *, prefix: str, silent_seconds: float = ABANDONED_SECONDS) -> Path:
    """Make a folder for one piece of work, and remove those that were abandoned.

    Args:
        data_dir: Where the process keeps its data; other processes may use it too.
        prefix: Begin of the folder's name: whose it is.
        silent_seconds: After how long without a write those of the same prefix are abandoned, where
            whoever works in one touches it more often.

    Returns:
        An empty folder; the caller removes it.
    """
    root = _root(data_dir)
    root.mkdir(parents=True, exist_ok=True)
    for folder in root.iterdir():
        patience = silent_seconds if folder.name.startswith(prefix) else ABANDONED_SECONDS
        if _touched_at(folder) < time.time() - patience:
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=root))


def is_at_work(data_dir: Path, *, prefix: str, silent_seconds: float) -> bool:
    """Tell whether somebody works in a folder of a prefix; one that comes at once may be missed.

    Args:
        data_dir: As for ``make_scratch``.
        prefix: Begin of the folder's name.
        silent_seconds: As for ``make_scratch``.

    Returns:
        True when something was written in one, or one was touched, within that time.
    """
    since = time.time() - silent_seconds
    return any(_touched_at(folder) >= since for folder in _root(data_dir).glob(f"{prefix}*"))


def remove_leftovers(settings: Settings) -> None:
    """Remove everything unfinished, whatever its age.

    Args:
        settings: Whose data directory nobody else uses now. Objects outside of it may be others',
            and are left alone.
    """
    shutil.rmtree(_root(settings.data_dir), ignore_errors=True)
    url = urlsplit(settings.storage_url)
    objects = Path(unquote(url.path))
    if url.scheme == "file" and objects.is_relative_to(settings.data_dir):
        for left in objects.rglob(f"{TEMPORARY_PREFIX}*"):
            left.unlink(missing_ok=True)


def _root(data_dir: Path) -> Path:
    return data_dir / "scratch"


def _touched_at(folder: Path) -> float:
    """When something in a folder was last written, in Unix seconds; now if it has just gone."""
    newest = 0.0
    with suppress(FileNotFoundError):
        for path in (folder, *folder.rglob("*")):
            newest = max(newest, path.stat().st_mtime)
        return newest
    return time.time()
