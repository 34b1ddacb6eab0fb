import threading
from concurrent.futures import CancelledError

import pytest

from core.errors import Unavailable
from inference.owner import Owner
from inference.scheduler import Scheduler
from inference.tickets import Batch, Lane, Work

LANE = Lane("minilm", "encoder")
PATIENCE_SECONDS = 10


class Echo:
    """Answers rows with the name of the thread that answered."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.batches: list[int] = []

    def run(self, batch: Batch) -> None:
        self.batches.append(len(batch.works))
        for work in batch.works:
            self.scheduler.answer(work, threading.current_thread().name)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(max_rows=100)


def submit(scheduler: Scheduler, count: int) -> list[str]:
    works = [Work(index, LANE, 1, None) for index in range(count)]
    return scheduler.submit(works, deadline=1e12).answers.result(PATIENCE_SECONDS)


def test_calls_and_batches_run_on_one_thread(scheduler: Scheduler) -> None:
    owner = Owner(scheduler, Echo(scheduler).run)
    owner.start()
    called_on = owner.call(lambda: threading.current_thread().name).result(PATIENCE_SECONDS)
    assert submit(scheduler, 2) == [called_on, called_on]
    assert called_on != threading.current_thread().name
    assert owner.stop(PATIENCE_SECONDS)
    assert not owner.is_alive()


def test_what_a_call_raises_reaches_the_caller_and_the_thread_goes_on(scheduler: Scheduler) -> None:
    owner = Owner(scheduler, Echo(scheduler).run)
    owner.start()

    def fail() -> None:
        raise ValueError("no such base")

    with pytest.raises(ValueError, match="no such base"):
        owner.call(fail).result(PATIENCE_SECONDS)
    assert len(submit(scheduler, 1)) == 1
    assert owner.stop(PATIENCE_SECONDS)


def test_requests_that_arrive_during_a_forward_share_the_next_one(scheduler: Scheduler) -> None:
    echo = Echo(scheduler)
    owner = Owner(scheduler, echo.run)
    owner.start()
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        free.wait(PATIENCE_SECONDS)

    owner.call(hold)
    assert busy.wait(PATIENCE_SECONDS)
    tickets = [scheduler.submit([Work(0, LANE, 1, None)], deadline=1e12) for _ in range(5)]
    free.set()
    for ticket in tickets:
        ticket.answers.result(PATIENCE_SECONDS)
    assert echo.batches == [5]
    assert owner.stop(PATIENCE_SECONDS)


def test_stop_does_not_wait_for_ever_and_cancels_calls(scheduler: Scheduler) -> None:
    owner = Owner(scheduler, Echo(scheduler).run)
    owner.start()
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        free.wait(PATIENCE_SECONDS)

    running = owner.call(hold)
    assert busy.wait(PATIENCE_SECONDS)
    waiting = owner.call(lambda: None)
    assert not owner.stop(0.01)
    free.set()
    running.result(PATIENCE_SECONDS)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_SECONDS)
    with pytest.raises(CancelledError):
        owner.call(lambda: None).result(PATIENCE_SECONDS)
    assert owner.stop(PATIENCE_SECONDS)


def test_a_fault_of_the_loop_ends_the_waiting_requests_and_is_told(scheduler: Scheduler) -> None:
    def broken(batch: Batch) -> None:
        raise RuntimeError(f"a batch of {len(batch.works)}")

    owner = Owner(scheduler, broken)
    died = threading.Event()
    owner.on_death(died.set)
    first = scheduler.submit([Work(0, LANE, 1, None)], deadline=1e12)
    second = scheduler.submit([Work(0, Lane("other", "encoder"), 1, None)], deadline=1e12)
    owner.start()
    assert died.wait(PATIENCE_SECONDS)
    assert owner.died
    for ticket in (first, second):
        assert isinstance(ticket.answers.exception(PATIENCE_SECONDS), Unavailable)
