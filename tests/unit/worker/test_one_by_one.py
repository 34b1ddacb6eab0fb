"""Pieces of work one after the other, whatever threads bring them."""

import threading
from collections.abc import Iterator

import pytest

from worker.one_by_one import OneByOne


class Bench:
    """Work that rests with the first piece in hand until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.stopping = (threading.Event() for _ in range(3))
        self.done: list[str] = []
        self.pieces = OneByOne(self._work, stopping=self.stopping)
        self._thread = threading.Thread(target=self.pieces.run, args=("first",))

    def __enter__(self) -> "Bench":
        self._thread.start()
        assert self.begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _work(self, name: str) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        self.done.append(name)
        if name == "bad":
            raise OSError("a fault of one")


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made:
        yield made


def test_whoever_comes_meanwhile_goes_on_at_once(bench: Bench) -> None:
    for name in ("second", "bad", "second", "first", "last"):
        bench.pieces.run(name)
    assert bench.done == []
    bench.__exit__()
    assert bench.done == ["first", "second", "bad", "last"]
    bench.pieces.run("first")
    assert bench.done[-1] == "first"


def test_a_worker_that_stops_begins_nothing_more(bench: Bench) -> None:
    bench.pieces.run("second")
    bench.stopping.set()
    bench.__exit__()
    assert bench.done == ["first"]
