"""Folders of work in hand, and what killed processes left behind."""

import os
import time
from pathlib import Path

from core.settings import load_settings
from core.storage import is_at_work, make_scratch, open_store, remove_leftovers
from core.storage.scratch import ABANDONED_SECONDS


def leave_behind(folder: Path, *, age_seconds: float) -> Path:
    """A folder as a killed process leaves it."""
    (folder / "deep").mkdir(parents=True)
    file = folder / "deep" / "rows"
    file.write_bytes(b"x" * 1000)
    then = time.time() - age_seconds
    for path in (file, folder / "deep", folder):
        os.utime(path, (then, then))
    return folder


def test_a_new_folder_takes_the_place_of_abandoned_ones(tmp_path: Path) -> None:
    old = leave_behind(tmp_path / "scratch" / "upload-old", age_seconds=ABANDONED_SECONDS + 60)
    at_work = leave_behind(tmp_path / "scratch" / "upload-new", age_seconds=60)
    made = make_scratch(tmp_path, prefix="upload-")
    assert made.is_dir()
    assert made.name.startswith("upload-")
    assert not old.exists()
    assert (at_work / "deep" / "rows").exists()


def test_a_folder_that_is_still_written_to_is_kept_however_old(tmp_path: Path) -> None:
    long = leave_behind(tmp_path / "scratch" / "upload-long", age_seconds=3 * ABANDONED_SECONDS)
    os.utime(long / "deep" / "rows")
    make_scratch(tmp_path, prefix="upload-")
    assert long.exists()


def test_silence_is_shorter_where_whoever_works_shows_life(tmp_path: Path) -> None:
    killed = leave_behind(tmp_path / "scratch" / "ds_1-killed", age_seconds=11)
    other = leave_behind(tmp_path / "scratch" / "ds_2-upload", age_seconds=11)
    assert not is_at_work(tmp_path, prefix="ds_1-", silent_seconds=10)
    living = make_scratch(tmp_path, prefix="ds_1-", silent_seconds=10)
    assert not killed.exists()
    assert other.exists()
    assert is_at_work(tmp_path, prefix="ds_1-", silent_seconds=10)
    assert not is_at_work(tmp_path, prefix="ds_3-", silent_seconds=10)
    make_scratch(tmp_path, prefix="ds_1-", silent_seconds=10)
    assert living.exists()


def test_whoever_has_the_data_to_itself_removes_everything_unfinished(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path / "data with space")
    store = open_store(settings)
    store.put_bytes("deltas/whole", b"kept")
    unfinished = settings.data_dir / "objects" / "deltas" / ".part-abc"
    unfinished.write_bytes(b"x")
    left = leave_behind(settings.data_dir / "scratch" / "ds_1-x", age_seconds=1)
    remove_leftovers(settings)
    assert not left.exists()
    assert not unfinished.exists()
    assert store.get_bytes("deltas/whole") == b"kept"
    remove_leftovers(settings)


def test_objects_that_others_may_write_are_left_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".part-theirs").write_bytes(b"x")
    remove_leftovers(load_settings(data_dir=tmp_path / "data", storage_url=f"file://{shared}"))
    assert (shared / ".part-theirs").exists()
