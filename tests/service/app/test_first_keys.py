"""The first key of a database, and the file that keeps it."""

from pathlib import Path

from cli.serve import KEY_FILE, prepare_database
from core.db import open_database, tenants
from core.settings import load_settings


def test_the_file_of_another_database_keeps_no_key_away(tmp_path: Path) -> None:
    """A database that was replaced by an empty one needs a key, whatever the file says."""
    settings = load_settings(data_dir=tmp_path)
    path, told = tmp_path / KEY_FILE, list[str]()
    path.write_text("tk_of_another_database\n")
    prepare_database(settings, say=told.append, replaces_lost_key=False)
    secret = path.read_text().strip()
    assert secret in told[0]
    assert path.stat().st_mode & 0o777 == 0o600
    database = open_database(settings)
    with database.read() as session:
        assert tenants.authenticate(session, secret) is not None
    database.dispose()


def test_a_key_that_is_kept_stays(tmp_path: Path) -> None:
    settings, told = load_settings(data_dir=tmp_path), list[str]()
    prepare_database(settings, say=told.append, replaces_lost_key=True)
    kept = (tmp_path / KEY_FILE).read_text()
    prepare_database(settings, say=told.append, replaces_lost_key=True)
    assert (tmp_path / KEY_FILE).read_text() == kept
    assert len(told) == 1


def test_a_lost_key_is_replaced_for_the_one_service_alone(tmp_path: Path) -> None:
    settings, told = load_settings(data_dir=tmp_path), list[str]()
    prepare_database(settings, say=told.append, replaces_lost_key=True)
    (tmp_path / KEY_FILE).unlink()
    prepare_database(settings, say=told.append, replaces_lost_key=False)
    assert not (tmp_path / KEY_FILE).exists()
    prepare_database(settings, say=told.append, replaces_lost_key=True)
    assert (tmp_path / KEY_FILE).exists()
    assert len(told) == 2
