"""What a running process keeps out of the collector's sight, and when."""

import gc
import threading
import weakref

from core.errors import NotFound
from inference.bases import Bases
from inference.heap import freeze_heap
from inference.owner import Owner
from inference.scheduler import Scheduler
from inference.served import BaseLoader, BaseState
from peft_engine.bases.base import Base, BaseInfo


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_alive_is_frozen_and_what_is_garbage_is_freed_first() -> None:
    alive, garbage = Cycle(), weakref.ref(Cycle())
    try:
        freeze_heap()
        assert garbage() is None
        assert not any(found is alive for found in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(found is alive for found in gc.get_objects())


def test_the_call_comes_once_and_only_when_no_base_is_left_to_load() -> None:
    def refuse(name: str, reference: str) -> BaseInfo:
        raise NotFound(f"no model {reference}")

    def never(name: str, reference: str) -> Base:
        raise AssertionError("a base that cannot be described is not loaded")

    calls: list[set[BaseState]] = []
    called = threading.Event()
    known = {"a": "pkg:a", "b": "pkg:b"}
    bases = Bases(known, None, BaseLoader(refuse, never), budget_bytes=1)

    def note() -> None:
        calls.append({served.state for served in bases.all()})
        called.set()

    bases.on_settled(note)
    bases.start(Owner(Scheduler(max_rows=1), lambda _: None))
    assert called.wait(30)
    assert calls == [{BaseState.FAILED}]
