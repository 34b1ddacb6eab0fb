"""Text while it is written: the same text, the same receipt, and nothing runs on for nobody."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.service.inference.conftest import PATIENCE_SECONDS, Process, Row, Shelf, wait_until
from tests.service.inference.test_answers import about_equal, classify, write

LONG = {"max_new_tokens": 40}


def stream(process: Process, rows: list[Row], **more: Any) -> Iterator[dict[str, Any]]:
    with process.client.stream("POST", "/stream", json={"rows": rows, **more}) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            yield json.loads(line)


def test_a_stream_tells_what_predict_answers(process: Process, shelf: Shelf) -> None:
    rows = [
        write("my card", shelf.put("llama", seed=1).reference, **LONG),
        write("my card", None, max_new_tokens=3, logprobs=2),
        classify("my card", shelf.put("bert", seed=4).reference),
        write("order", None, temperature=1.2, seed=5, n=3, max_new_tokens=8),
    ]
    expected = process.predict(rows)
    events = list(stream(process, rows))
    texts: dict[tuple[int, int], str] = defaultdict(str)
    for event in events:
        if "text" in event:
            texts[event["row"], event["choice"]] += event["text"]
    endings = {event["row"]: event for event in events if "output" in event}
    assert sorted(endings) == [0, 1, 2, 3]
    for row, ending in endings.items():
        assert about_equal(ending["output"], expected["outputs"][row])
        assert ending["receipt"] == expected["receipts"][row]
    assert events[-1] == {"usage": expected["usage"]}
    for row, choice, output in (
        (0, 0, expected["outputs"][0]),
        (1, 0, expected["outputs"][1]),
        *((3, place, own) for place, own in enumerate(expected["outputs"][3]["choices"])),
    ):
        assert texts[row, choice] == output["text"]
    assert len({own["text"] for own in expected["outputs"][3]["choices"]}) > 1
    tokens = [len(one["top"]) for one in expected["outputs"][1]["logprobs"]]
    assert tokens == [2] * expected["outputs"][1]["tokens"]


def test_a_short_answer_does_not_wait_for_a_long_one_that_began_before(
    process: Process, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    long = stream(process, [write("my card", shelf.put("llama", seed=1).reference, **LONG)])
    assert "text" in next(long)
    process.predict([write("order", None, max_new_tokens=2)])
    events = [*long]
    assert "output" in events[-2]


def test_a_client_that_hangs_up_ends_its_rows(
    process: Process, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = shelf.put("llama", seed=1).reference
    rows = [write("my card", reference, max_new_tokens=100) for _ in range(3)]
    writer = process.parts.bases.engines()[1].writer
    step, go_on, steps = writer.step, threading.Event(), list[int]()

    def wait_in_the_middle(*only: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == 20:
            go_on.wait(PATIENCE_SECONDS)
        return step(*only)

    monkeypatch.setattr(writer, "step", wait_in_the_middle)
    events = stream(process, rows)
    assert "text" in next(events)
    wait_until(lambda: len(steps) == 20)
    assert writer.rows == 3
    works = [writing.payload for writing in writer.open]
    assert all(0 < work.unused < 100 for work in works)
    events.close()  # type: ignore[attr-defined]
    wait_until(lambda: all(w.payload.owner_ticket().over for w in writer.open))
    go_on.set()
    wait_until(lambda: process.parts.scheduler.state().rows_in_flight == 0)
    assert len(steps) < 25
    assert not any(work.unused for work in works)  # given back
    assert (writer.rows, writer.cache_bytes) == (0, 0)
    assert process.parts.bank.state().pinned == 0


def test_rows_of_a_stream_may_wait_for_as_long_as_others_of_it_go_on(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a batch holds, each of which takes half of the time that a call has."""
    writer, scheduler = process.parts.bases.engines()[1].writer, process.parts.scheduler
    step, clock, late = writer.step, scheduler._clock, [0.0]
    monkeypatch.setattr(scheduler, "_clock", lambda: clock() + late[0])
    deadlines = list[float]()

    def half_a_timeout_later(*only: Any) -> Any:
        ticket = writer.open[0].payload.owner_ticket()
        if deadlines and len(deadlines) < 5:  # a token of the step before has come
            wait_until(lambda: ticket.deadline > deadlines[-1], seconds=5)
            late[0] += 30.0
        deadlines.append(ticket.deadline)
        return step(*only)

    monkeypatch.setattr(writer, "step", half_a_timeout_later)
    events = list(stream(process, [write("my card", None, max_new_tokens=9)] * 40))
    assert late == [120.0]
    assert sum("output" in event for event in events) == 40
    assert "usage" in events[-1]


def test_what_is_wrong_before_the_start_has_its_own_status(process: Process) -> None:
    bad = write("my card", None, max_new_tokens=10**6)
    answer = process.client.post("/stream", json={"rows": [bad]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "rows.0.options.max_new_tokens"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": 17, "temperature": 1.0}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
    ],
)
def test_options_out_of_bounds_are_named(
    process: Process, options: dict[str, Any], param: str
) -> None:
    error = process.error([write("my card", None, **options)], 400)
    assert error["param"] == f"rows.0.options.{param}"


def test_a_row_that_breaks_a_step_does_not_take_its_neighbours_down(
    process: Process, shelf: Shelf, crowd: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward fails for one delta, in the middle of its text."""
    writer = process.parts.bases.engines()[1].writer
    bad = write("lost", shelf.put("llama", seed=2).reference, **LONG)
    good = [write("my card", shelf.put("llama", seed=s).reference, **LONG) for s in (1, 3)]
    expected = process.predict(good)
    in_force, seen = writer._in_force, list[Any]()

    def note(owners: Any) -> Any:
        seen.extend(owners)
        return in_force(owners)

    monkeypatch.setattr(writer._decoder, "_in_force", note)
    process.predict([bad])
    victim, forwards = seen[0], list[int]()

    def break_down(owners: Any) -> Any:
        forwards.append(len(owners))
        if len(forwards) > 5 and any(owner is victim for owner in owners):
            raise RuntimeError("the kernel failed")
        return in_force(owners)

    monkeypatch.setattr(writer._decoder, "_in_force", break_down)
    with process.owner_held():
        asked = [crowd.submit(process.post, [row]) for row in (*good, bad)]
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 3)
    answers = [future.result(PATIENCE_SECONDS) for future in asked]
    assert [answer.status_code for answer in answers] == [200, 200, 500]
    assert 3 in forwards
    for answer, output in zip(answers, expected["outputs"], strict=False):
        assert answer.json()["outputs"] == [output]
