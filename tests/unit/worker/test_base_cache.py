import weakref
from dataclasses import dataclass
from typing import Any

import pytest

from peft_engine.compression.watch import UNWATCHED, Watch
from worker.base_cache import BaseCache


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Base:
    fingerprint: str


class Loader:
    """An engine that only loads; ``room`` bases fit into its memory."""

    def __init__(self, room: int = 9) -> None:
        self.loaded: list[str] = []
        self.in_memory = 0
        self.room = room
        self.given: list[weakref.ref[Base]] = []
        self.alive_at_tidy: list[int] = []

    def load_base(self, name: str, precision: str, watch: Watch = UNWATCHED) -> Base:
        if self.in_memory >= self.room:
            raise MemoryError
        self.in_memory += 1
        self.loaded.append(f"{name}/{precision}")
        base = Base(name)
        self.given.append(weakref.ref(base))
        return base

    def certify(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is trained here")

    def tidy(self) -> None:
        self.in_memory -= 1
        self.alive_at_tidy.append(sum(base() is not None for base in self.given))

    def train(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    def save_delta(self, delta: Any) -> bytes:
        raise AssertionError


def test_a_base_is_loaded_once_for_each_precision() -> None:
    engine = Loader()
    cache = BaseCache(engine)
    assert cache.get("a", "auto") is cache.get("a", "auto")
    cache.get("a", "bf16")
    assert engine.loaded == ["a/auto", "a/bf16"]


def test_the_base_that_was_used_longest_ago_goes_first() -> None:
    engine = Loader()
    cache = BaseCache(engine, capacity=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, "auto")
    assert engine.loaded == ["a/auto", "b/auto", "c/auto", "b/auto"]
    assert engine.in_memory == 2


def test_warm_bases_make_room_for_the_one_that_is_needed() -> None:
    engine = Loader(room=1)
    cache = BaseCache(engine, capacity=3)
    cache.get("a", "auto")
    assert cache.get("b", "auto") == Base("b")
    assert engine.in_memory == 1


def test_a_base_that_never_fits_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        BaseCache(Loader(room=0)).get("a", "auto")


def test_the_base_that_is_put_out_is_gone_when_memory_is_given_back() -> None:
    engine = Loader()
    cache = BaseCache(engine, capacity=1)
    cache.get("a", "auto")
    cache.get("b", "auto")
    assert engine.alive_at_tidy == [0]
