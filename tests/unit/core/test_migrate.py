"""What a person is told when a database cannot be migrated."""

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from core.db import migrate


def test_a_full_disk_is_told_apart_from_a_database_that_is_away() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("CREATE TABLE a (b TEXT)")
    with pytest.raises(sqlite3.OperationalError) as other:
        connection.execute("SELECT b FROM nowhere")
    connection.close()
    url = "sqlite:///nowhere.db"
    told = [
        migrate._lacks_room(url, OperationalError("", None, caught.value))
        for caught in (full, other)
    ]
    assert told == [True, False]
