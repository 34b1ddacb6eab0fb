"""Adapters that were looked up a moment ago."""

from typing import Any

import pytest

from app.services import known_adapters
from app.services.known_adapters import KnownAdapters
from core.db.adapters import Resolved
from core.db.models import Adapter


def resolved(**origin: Any) -> Resolved:
    adapter = Adapter(id="adp_1", name="intents", version=3)
    return Resolved(adapter, origin.get("alias"), origin.get("revision"))


def remember(known: KnownAdapters, reference: str, **origin: Any) -> None:
    known.remember("ten_1", reference, resolved(**origin), moment=known.moment)


@pytest.mark.parametrize("reference", ["adp_1", "intents@3"])
def test_what_means_one_adapter_for_ever_is_remembered_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    now = 100.0
    monkeypatch.setattr(known_adapters, "monotonic", lambda: now)
    known = KnownAdapters()
    remember(known, reference)
    found = known.find("ten_1", reference)
    assert found is not None
    assert found.adapter.id == "adp_1"
    assert known.find("ten_2", reference) is None
    now += known_adapters.REMEMBER_SECONDS + 0.001
    assert known.find("ten_1", reference) is None


@pytest.mark.parametrize("reference", ["intents", "live"])
def test_names_and_aliases_are_looked_up_every_time(reference: str) -> None:
    known = KnownAdapters()
    remember(known, reference, alias="live", revision=1)
    assert known.find("ten_1", reference) is None


def test_a_deletion_forgets_and_what_was_read_before_it_is_not_kept() -> None:
    known = KnownAdapters()
    remember(known, "adp_1")
    before = known.moment
    known.forget_all()
    assert known.find("ten_1", "adp_1") is None
    known.remember("ten_1", "adp_1", resolved(), moment=before)
    assert known.find("ten_1", "adp_1") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_adapters, "MAX_KNOWN", 3)
    known = KnownAdapters()
    for tenant_id in "abcdefg":
        known.remember(tenant_id, "adp_1", resolved(), moment=known.moment)
    assert sum(known.find(tenant_id, "adp_1") is not None for tenant_id in "abcdefg") <= 3
