"""When a process says that its bases are settled."""

import threading

from core.errors import NotFound
from inference.bases import Bases
from inference.owner import Owner
from inference.scheduler import Scheduler
from inference.served import BaseLoader, BaseState
from peft_engine.bases.base import Base, BaseInfo


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
