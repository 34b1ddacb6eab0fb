"""What goes into a database looks the same on both kinds."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from core.db.base import UtcDateTime, dump_json
from core.db.engine import parse_url
from core.db.idempotency import digest_request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


@given(JSON)
def test_json_is_always_something_that_postgres_takes(value: object) -> None:
    # parse_constant is called for NaN and both infinities
    loaded = json.loads(dump_json(value), parse_constant=pytest.fail)
    assert not any("\x00" in text for text in _strings(loaded))


def test_json_keeps_what_json_can_say() -> None:
    value = {"a": [1, 2.5, "ü", None, True], "b": {"c": ()}}
    assert json.loads(dump_json(value)) == {"a": [1, 2.5, "ü", None, True], "b": {"c": []}}
    assert dump_json([float("nan"), float("inf"), "a\x00b"]) == '[null, null, "ab"]'


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_times_are_aware_and_in_utc(dialect: object) -> None:
    kind = UtcDateTime()
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    stored = kind.process_bind_param(noon, dialect)  # type: ignore[arg-type]
    back = kind.process_result_value(stored, dialect)  # type: ignore[arg-type]
    assert back == noon
    assert back is not None
    assert back.tzinfo is UTC
    assert kind.process_bind_param(None, dialect) is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="naive time"):
        kind.process_bind_param(datetime(2026, 1, 1), dialect)  # type: ignore[arg-type]  # noqa: DTZ001


@pytest.mark.parametrize("url", ["postgres://h/n", "postgresql://h/n", "postgresql+psycopg://h/n"])
def test_every_spelling_of_postgres_is_the_same_driver(url: str) -> None:
    assert parse_url(url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://h/n"])
def test_databases_that_cannot_serve_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"use sqlite:///path|give a path"):
        parse_url(url)


def test_a_request_s_digest_does_not_see_the_order_of_keys() -> None:
    assert digest_request({"a": 1, "b": [1, 2]}) == digest_request({"b": [1, 2], "a": 1})
    assert digest_request({"a": [1, 2]}) != digest_request({"a": [2, 1]})
    assert digest_request({"a": "ü"}).startswith("sha256:")
