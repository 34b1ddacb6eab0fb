"""Callers that were found a moment ago."""

from datetime import UTC, datetime, timedelta

import pytest

from app.services import callers
from app.services.callers import Caller, KnownCallers
from core.errors import Forbidden

CALLER = Caller("ten_1", frozenset({"read"}))


def test_a_caller_is_remembered_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(callers, "monotonic", lambda: now)
    known = KnownCallers()
    assert known.find("tk_a") is None
    known.remember("tk_a", CALLER, moment=known.moment)
    assert known.find("tk_a") is CALLER
    assert known.find("tk_b") is None
    now += callers.REMEMBER_SECONDS + 0.001
    assert known.find("tk_a") is None


def test_all_can_be_forgotten() -> None:
    known = KnownCallers()
    known.remember("tk_a", CALLER, moment=known.moment)
    known.forget_all()
    assert known.find("tk_a") is None


def test_a_key_that_was_looked_up_before_it_was_revoked_is_not_kept() -> None:
    known = KnownCallers()
    moment = known.moment
    known.forget_all()  # revoked while the database was asked
    known.remember("tk_a", CALLER, moment=moment)
    assert known.find("tk_a") is None


def test_an_expired_key_is_not_remembered() -> None:
    known = KnownCallers()
    gone = Caller("ten_1", frozenset(), expires_at=datetime.now(UTC) - timedelta(microseconds=1))
    known.remember("tk_a", gone, moment=known.moment)
    assert known.find("tk_a") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_KNOWN", 3)
    known = KnownCallers()
    for name in "abcdefg":
        known.remember(name, CALLER, moment=known.moment)
    assert sum(known.find(name) is not None for name in "abcdefg") <= 3


def test_scopes() -> None:
    CALLER.require("read")
    with pytest.raises(Forbidden, match="lacks the scope 'write'"):
        CALLER.require("write")
