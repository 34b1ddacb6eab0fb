"""Slow storage, full queues, deadlines, clients that leave: nobody else waits for them."""

import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.storage import Aligned, ObjectStore
from inference.runner import Settler
from inference.tickets import Work
from peft_engine.delta import save_delta
from tests.service.inference.conftest import (
    PATIENCE_SECONDS,
    Process,
    Row,
    Shelf,
    Start,
    Stored,
    wait_until,
)


class SlowStore:
    """The real store, except that one object is not given out before its time."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.slow_key: str | None = None
        self.begun = threading.Event()
        self.released = threading.Event()

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned) -> memoryview:
        if key == self.slow_key:
            self.begun.set()
            assert self.released.wait(PATIENCE_SECONDS)
        return self.store.get_buffer(key, most_bytes=most_bytes, aligned=aligned)


def ask(stored: Stored) -> Row:
    return {"input": "where is my card", "base_model": "bert", "delta": stored.reference}


def test_a_slow_object_never_stalls_rows_of_other_adapters(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    store = SlowStore(shelf.store)
    process = start(store=store)
    slow, warm, cold = (shelf.put("bert", seed=seed) for seed in (1, 2, 3))
    store.slow_key = slow.reference["key"]
    process.predict([ask(warm)])
    waiting = [crowd.submit(process.predict, [ask(slow), ask(warm)]) for _ in range(3)]
    assert store.begun.wait(PATIENCE_SECONDS)
    process.predict([ask(warm)])
    process.predict([ask(cold)])
    process.predict([{"input": "my card", "base_model": "llama", "options": {"max_new_tokens": 2}}])
    assert not any(future.done() for future in waiting)
    store.released.set()
    for future in waiting:
        receipts = future.result(PATIENCE_SECONDS)["receipts"]
        assert [r["adapter_digest"] for r in receipts] == [slow.delta.digest, warm.delta.digest]
    assert process.parts.bank.state().loads == 3
    wait_until(lambda: process.parts.bank.state().pinned == 0)


def test_a_slow_object_does_not_outlive_the_deadline_of_its_request(
    start: Start, shelf: Shelf
) -> None:
    store = SlowStore(shelf.store)
    process = start(store=store)
    slow = shelf.put("bert", seed=1)
    store.slow_key = slow.reference["key"]
    error = process.error([ask(slow)], 504, timeout_seconds=0.05)
    assert error["code"] == "deadline_exceeded"
    assert process.parts.scheduler.state().rows_in_flight == 0
    store.released.set()
    # the load went on for the next one, and the one that left holds nothing
    process.predict([ask(slow)])
    assert process.parts.bank.state().loads == 1
    wait_until(lambda: process.parts.bank.state().pinned == 0)


def test_a_full_queue_answers_429_until_there_is_room(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    process = start(max_waiting_rows=4)
    stored = shelf.put("bert", seed=1)
    with process.owner_held():
        waiting = crowd.submit(process.predict, [ask(stored)] * 3)
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 3)
        refused = process.post([ask(stored)] * 2)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        fits = crowd.submit(process.predict, [ask(stored)])
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 4)
    assert len(waiting.result(PATIENCE_SECONDS)["outputs"]) == 3
    assert len(fits.result(PATIENCE_SECONDS)["outputs"]) == 1
    process.predict([ask(stored)] * 4)


def test_a_request_that_is_not_begun_in_time_is_told_so(process: Process, shelf: Shelf) -> None:
    stored = shelf.put("bert", seed=1)
    process.predict([ask(stored)])
    with process.owner_held():
        answer = process.post([ask(stored)], timeout_seconds=0.05)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert "retry-after" not in answer.headers
        state = process.parts.scheduler.state()
        assert (state.rows_waiting, state.rows_in_flight) == (0, 0)
        assert process.parts.bank.state().pinned == 0


def test_the_rows_of_a_client_that_left_are_not_run(process: Process, shelf: Shelf) -> None:
    stored = shelf.put("bert", seed=1)
    with process.owner_held():
        url = httpx.URL(process.client.base_url)
        request = process.client.build_request("POST", "/predict", json={"rows": [ask(stored)] * 8})
        with socket.create_connection((url.host, url.port or 0)) as connection:
            head = ["POST /predict HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
            connection.sendall("\r\n".join([*head, "", ""]).encode() + request.content)
            wait_until(lambda: process.parts.scheduler.state().rows_waiting == 8)
        wait_until(lambda: process.parts.scheduler.state().rows_in_flight == 0)
        assert process.parts.scheduler.state().rows_waiting == 0
        assert process.parts.bank.state().pinned == 0
    process.predict([ask(stored)])
    assert process.parts.scheduler.state().rows_done == 1


def test_a_delta_that_waiting_rows_need_is_never_evicted(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    stored = [shelf.put("bert", seed=seed) for seed in range(5)]
    process = start(bank_bytes=40_000, bank_host_bytes=1)  # two of them
    with process.owner_held():
        first = crowd.submit(process.predict, [ask(stored[0])])
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 1)
        for one in stored[1:]:
            # comes in, is not begun in time, and may leave again
            assert (
                process.error([ask(one)], 504, timeout_seconds=0.2)["code"] == "deadline_exceeded"
            )
        state = process.parts.bank.state()
        assert (state.loads, state.evictions, state.pinned) == (5, 3, 1)
    receipt = first.result(PATIENCE_SECONDS)["receipts"][0]
    assert receipt["adapter_digest"] == stored[0].delta.digest
    assert process.parts.bank.state().loads == 5


def test_requests_for_several_adapters_do_not_wait_for_each_other(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    stored = [shelf.put("bert", seed=seed) for seed in range(6)]
    one = len(save_delta(stored[0].delta))
    process = start(bank_bytes=one * 7 // 2, bank_host_bytes=1)  # three of six

    def ask_two(which: int) -> httpx.Response:
        pair = stored[which % 6], stored[(which + 1 + which // 6 % 5) % 6]
        return process.post([ask(stored) for stored in pair])

    answers = list(crowd.map(ask_two, range(60)))
    assert {answer.status_code for answer in answers} == {200}, answers
    wait_until(lambda: process.parts.bank.state().pinned == 0)


def test_a_crowd_for_one_adapter_does_not_keep_another_out(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    hot, cold = shelf.put("llama", seed=1), shelf.put("llama", seed=2)
    one = len(save_delta(hot.delta))
    process = start(bank_bytes=one * 3 // 2, bank_host_bytes=1)
    order: list[str | None] = []
    uses = process.parts.predictor.uses

    def ask_for(stored: Stored) -> None:
        row = {"input": "hi", "base_model": "llama", "delta": stored.reference}
        row["options"] = {"max_new_tokens": 4}
        order.append(process.predict([row])["receipts"][0]["adapter_digest"])

    with process.owner_held():
        asking = [crowd.submit(ask_for, hot) for _ in range(4)]
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 4)
        asking.append(crowd.submit(ask_for, cold))
        wait_until(lambda: bool(process.parts.bank._room_line))
        asking += [crowd.submit(ask_for, hot) for _ in range(11)]
        wait_until(lambda: uses.count(hot.reference["adapter_id"]) == 15)
    for future in asking:
        future.result(PATIENCE_SECONDS)
    assert order.index(cold.delta.digest) == 4  # behind those that ran when it came


def test_the_memory_of_an_evicted_delta_is_really_free(start: Start, shelf: Shelf) -> None:
    old, new = shelf.put("bert", seed=1), shelf.put("bert", seed=2)
    process = start(bank_bytes=20_000, bank_host_bytes=1)  # one of them
    process.predict([ask(old)])
    delta = weakref.ref(process.parts.bank._entries[old.delta.digest].resident.delta)
    tensor = weakref.ref(next(t for _, t in delta().tensor_items()))  # type: ignore[union-attr]
    process.predict([ask(new)])
    wait_until(lambda: delta() is None and tensor() is None)


def test_a_crowd_over_a_small_bank_gets_its_own_answers(
    start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    stored = [shelf.put("bert", seed=seed) for seed in range(8)]
    process = start(bank_bytes=60_000, bank_host_bytes=1)  # three of eight
    alone = [process.predict([ask(one)]) for one in stored]

    def ask_until_answered(which: int) -> bool:
        for _ in range(1000):
            answer = process.post([ask(stored[which])])
            if answer.status_code == 200:
                return bool(answer.json()["receipts"] == alone[which]["receipts"])
            assert answer.json()["error"]["code"] == "bank_full"
        return False

    assert all(crowd.map(ask_until_answered, [which % 8 for which in range(80)]))
    assert process.parts.bank.state().device_bytes <= 60_000


def test_a_row_of_many_choices_holds_nobody_up(
    process: Process, shelf: Shelf, crowd: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes several forwards; rows and texts of others come in between."""
    labels = [f"card {number}" for number in range(400)]
    large = {"input": "my card", "base_model": "bert", "options": {"labels": labels}}
    text = {"input": "my card", "base_model": "llama", "options": {"max_new_tokens": 2}}
    others = [ask(shelf.put("bert", seed=1)), text]
    expected = [process.predict([row])["outputs"] for row in (large, *others)]
    process.parts.bases.engines()[0]._labels.clear()
    settled, settler = list[str](), Settler.settle

    def note(self: Settler, work: Work, *more: Any, **named: Any) -> None:
        settled.append(work.payload.row.kind)
        settler(self, work, *more, **named)

    monkeypatch.setattr(Settler, "settle", note)
    with process.owner_held():
        first = crowd.submit(process.predict, [large])
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 1)
        rest = [crowd.submit(process.predict, [row]) for row in others]
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 3)
    assert [one.result(PATIENCE_SECONDS)["outputs"] for one in (first, *rest)] == expected
    assert settled[-1] == "zero-shot"
    assert sorted(settled[:2]) == ["generate", "head"]
