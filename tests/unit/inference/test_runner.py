"""A row that breaks the forward must not break its neighbours."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.errors import ServiceError, Unavailable
from core.storage import Aligned
from inference.bank import Bank, DeltaRef, Resident
from inference.runner import Asked, Runner, Settler
from inference.scheduler import Scheduler
from inference.tickets import Lane, Ticket, Work
from peft_engine.errors import EngineError
from peft_engine.serving import Answer

LANE = Lane("minilm", "encoder")


@dataclass
class Base:
    """What a receipt reads of a base."""

    name: str = "minilm"
    fingerprint: str = "sha256:base"
    template_digest: str = "sha256:template"
    precision: str = "fp32"
    device: str = "cpu"


@dataclass
class Brittle:
    """An engine that raises when a row is an exception, and notes the size of every forward."""

    base: Base = field(default_factory=Base)
    forwards: list[int] = field(default_factory=list)
    loses: int = 0

    def predict_in_parts(self, row: Any, *, most_tokens: int) -> Generator[None, None, Answer]:
        for part in range(3):
            self.forwards.append(-part)
            if isinstance(row, Exception) and part == 1:
                raise row
            yield
        return Answer({"echo": (row, most_tokens)}, 1)

    def predict(self, rows: list[Any]) -> list[Answer]:
        self.forwards.append(len(rows))
        for row in rows:
            if isinstance(row, Exception):
                raise row
        return [Answer({"echo": row}, 1) for row in rows[self.loses :]]


class Nothing:
    """A store that holds nothing."""

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned) -> memoryview:
        raise AssertionError(f"nobody reads {key} of {most_bytes} bytes here, {aligned}")


def never(blob: memoryview, ref: DeltaRef) -> Resident:
    raise AssertionError(f"nobody loads {ref} of {len(blob)} bytes here")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(max_rows=100)


def run(scheduler: Scheduler, engine: Brittle, requests: list[list[Any]]) -> list[Ticket]:
    bank = Bank(Nothing(), never, device_bytes=1, host_bytes=0)
    asked = [
        [Work(i, LANE, 1, Asked(row, engine, None, None)) for i, row in enumerate(rows)]  # type: ignore[arg-type]
        for rows in requests
    ]
    tickets = [scheduler.submit(works, deadline=1e12) for works in asked]
    batch = scheduler.take()
    assert batch is not None
    Runner(scheduler, Settler(scheduler, bank)).run(batch)
    return tickets


def outputs(ticket: Ticket) -> list[Any]:
    return [one.answer.output["echo"] for one in ticket.answers.result(timeout=0)]


def error_of(ticket: Ticket) -> ServiceError:
    error = ticket.answers.exception(timeout=0)
    assert isinstance(error, ServiceError)
    return error


def test_one_forward_for_all_rows(scheduler: Scheduler) -> None:
    engine = Brittle()
    first, second = run(scheduler, engine, [["a", "b"], ["c"]])
    assert (outputs(first), outputs(second)) == (["a", "b"], ["c"])
    assert engine.forwards == [3]


def test_neighbours_of_a_row_that_breaks_the_forward_are_answered(scheduler: Scheduler) -> None:
    engine = Brittle()
    good, bad, other = run(scheduler, engine, [["a"], ["b", RuntimeError("secret path")], ["c"]])
    assert (outputs(good), outputs(other)) == (["a"], ["c"])
    error = error_of(bad)
    assert (error.status, error.code, error.param) == (500, "internal_error", "rows.1")
    assert "secret" not in error.message
    assert all(ticket.ended.done() for ticket in (good, bad, other))
    assert engine.forwards == [4, 1, 1, 1, 1]


def test_what_the_engine_says_of_a_row_reaches_its_client(scheduler: Scheduler) -> None:
    fault = EngineError("too long by 3 tokens", code="too_long", param="input")
    (ticket,) = run(scheduler, Brittle(), [[fault]])
    error = error_of(ticket)
    assert (error.status, error.code, error.param) == (400, "too_long", "rows.0.input")


def test_a_full_device_is_told_as_such(scheduler: Scheduler) -> None:
    (ticket,) = run(scheduler, Brittle(), [[MemoryError()]])
    assert (error_of(ticket).status, error_of(ticket).code) == (503, "device_full")


def test_an_engine_that_loses_a_row_gives_no_wrong_answer(scheduler: Scheduler) -> None:
    for ticket in run(scheduler, Brittle(loses=1), [["a"], ["b"]]):
        assert error_of(ticket).code == "internal_error"


def large(scheduler: Scheduler, engine: Brittle, rows: list[Any]) -> tuple[Runner, list[Ticket]]:
    """Rows that are larger than a forward, each a request, given to one runner."""
    bank = Bank(Nothing(), never, device_bytes=1, host_bytes=0)
    runner = Runner(scheduler, Settler(scheduler, bank), most_tokens=2000)
    tickets = []
    for row in rows:
        asked = Asked(row, engine, None, None)  # type: ignore[arg-type]
        tickets.append(scheduler.submit([Work(0, LANE, 3000, asked)], deadline=1e12))
        batch = scheduler.take()
        assert batch is not None
        runner.run(batch)
    return runner, tickets


def test_a_large_row_leaves_turns_to_others(scheduler: Scheduler) -> None:
    engine = Brittle()
    runner, (first,) = large(scheduler, engine, ["long"])
    assert runner.go_on()
    (second,) = run(scheduler, engine, [["short"]])
    assert (outputs(second), first.answers.done()) == (["short"], False)
    assert engine.forwards == [0, 1]
    assert [runner.go_on() for _ in range(3)] == [True, True, False]
    assert outputs(first) == [("long", 2000)]
    assert first.ended.done()
    assert scheduler.state().rows_done == 2


def test_two_large_rows_take_turns_and_a_third_waits(scheduler: Scheduler) -> None:
    engine = Brittle()
    runner, (first, second, third) = large(scheduler, engine, ["a", "b", "c"])
    while not second.answers.done():
        assert runner.go_on()
    assert first.answers.done()
    assert engine.forwards[:6] == [0, 0, -1, -1, -2, -2]
    while runner.go_on():
        pass
    assert outputs(third) == [("c", 2000)]


def test_a_large_row_that_fails_or_that_nobody_waits_for_ends(scheduler: Scheduler) -> None:
    runner, (bad, gone, good) = large(scheduler, Brittle(), [RuntimeError("no"), "b", "c"])
    runner.go_on()
    scheduler.cancel(gone, Unavailable("the client went away"))
    while runner.go_on():
        pass
    assert error_of(bad).code == "internal_error"
    assert (gone.ended.done(), outputs(good)) == (True, [("c", 2000)])
    runner, (left,) = large(scheduler, Brittle(), ["d"])
    runner.abandon(Unavailable("the process ends"))
    assert error_of(left).message == "the process ends"
    assert not runner.go_on()
