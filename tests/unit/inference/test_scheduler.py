from concurrent.futures import Future

import pytest

from core.errors import ServiceError, TooMany, Unavailable
from inference.limits import LaneLimits
from inference.scheduler import Scheduler
from inference.shares import background_of
from inference.tickets import Batch, Family, Lane, Ticket, Work

ENCODER = Lane("minilm", "encoder")
OTHER = Lane("mpnet", "encoder")
WRITER = Lane("smollm2", "generation")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    limits: dict[Family, LaneLimits] = {
        "encoder": LaneLimits(rows=4, tokens=100),
    }
    return Scheduler(max_rows=10, limits=limits, clock=clock)


def rows(names: str, *, lane: Lane = ENCODER, tokens: int = 1) -> list[Work]:
    return [Work(index, lane, tokens, name) for index, name in enumerate(names)]


def submit(
    scheduler: Scheduler, works: list[Work], *, deadline: float = 1e9, tenant: str = ""
) -> Ticket:
    return scheduler.submit(works, deadline=deadline, tenant=tenant)


def names(batch: Batch | None) -> str:
    assert batch is not None
    return "".join(work.payload for work in batch.works)


def answer(scheduler: Scheduler, batch: Batch | None) -> None:
    assert batch is not None
    for work in batch.works:
        scheduler.answer(work, work.payload.upper())


def error_of(future: Future[list[str]]) -> ServiceError:
    error = future.exception(timeout=0)
    assert isinstance(error, ServiceError)
    return error


def test_rows_of_waiting_requests_share_a_batch_in_turn(scheduler: Scheduler) -> None:
    submit(scheduler, rows("abcdef"))
    submit(scheduler, rows("xy"))
    assert names(scheduler.take()) == "axby"
    assert names(scheduler.take()) == "cdef"
    assert scheduler.take() is None


def test_a_large_request_does_not_hold_up_a_small_one(scheduler: Scheduler) -> None:
    submit(scheduler, rows("abcdefgh"))
    assert names(scheduler.take()) == "abcd"
    submit(scheduler, rows("z"))
    assert "z" in names(scheduler.take())


def test_lanes_never_mix_and_take_turns(scheduler: Scheduler) -> None:
    submit(scheduler, rows("abcdefgh"))
    submit(scheduler, rows("uvwxyz", lane=OTHER))
    lanes = [batch.lane for batch in iter(scheduler.take, None)]
    assert lanes == [ENCODER, OTHER, ENCODER, OTHER]


def test_a_tenant_with_many_rows_does_not_hold_up_another(scheduler: Scheduler) -> None:
    submit(scheduler, rows("a" * 20), tenant="busy")
    submit(scheduler, rows("a" * 20), tenant="busy")
    assert names(scheduler.take()) == "aaaa"
    submit(scheduler, rows("bb"), tenant="quiet")
    # the newcomer starts level with what waits: from here on they take turns
    assert names(scheduler.take()).count("b") == 2


def test_shares_are_counted_in_tokens_not_in_rows(scheduler: Scheduler) -> None:
    submit(scheduler, rows("L" * 9, lane=WRITER, tokens=30), tenant="long")
    submit(scheduler, rows("s" * 9, lane=WRITER, tokens=10), tenant="short")
    taken = [scheduler.take_row("generation", lambda _: True) for _ in range(8)]
    assert "".join(work.payload for work in taken if work) == "LsssLsss"


def test_a_weight_gives_a_larger_share(clock: Clock) -> None:
    scheduler = Scheduler(max_rows=100, weights={"gold": 3.0}, clock=clock)
    submit(scheduler, rows("g" * 9, lane=WRITER, tokens=6), tenant="gold")
    submit(scheduler, rows("t" * 9, lane=WRITER, tokens=6), tenant="tin")
    taken = [scheduler.take_row("generation", lambda _: True) for _ in range(8)]
    assert [work.payload for work in taken if work].count("g") == 6


QUIET = background_of("busy")


def test_a_row_that_somebody_waits_for_has_a_batch_without_others(scheduler: Scheduler) -> None:
    submit(scheduler, rows("qqqqqq"), tenant=QUIET)
    submit(scheduler, rows("pp"), tenant="person")
    # the batch came first, and who comes is level with it
    assert [names(batch) for batch in iter(scheduler.take, None)] == ["pp", *"qqqqqq"]


def test_while_people_are_there_the_batches_of_others_are_small(
    scheduler: Scheduler, clock: Clock
) -> None:
    submit(scheduler, rows("qqqq", tokens=6), tenant=QUIET)
    assert names(scheduler.take()) == "qqqq"
    submit(scheduler, rows("p"), tenant="person")
    assert names(scheduler.take()) == "p"
    submit(scheduler, rows("qQqq", tokens=6), tenant=QUIET)
    assert [names(batch) for batch in iter(scheduler.take, None)] == list("qQqq")
    clock.now += 61
    submit(scheduler, rows("qqqq", tokens=6), tenant=QUIET)
    assert names(scheduler.take()) == "qqqq"


def test_a_batch_that_nobody_waits_for_is_not_starved(scheduler: Scheduler) -> None:
    submit(scheduler, rows("q" * 400), tenant=QUIET)
    taken = ""
    for _ in range(300):
        submit(scheduler, rows("pppp"), tenant="person")
        taken += names(scheduler.take())
    assert 0.05 < taken.count("q") / len(taken) < 0.15


def test_a_row_without_a_claim_to_room_is_overtaken(scheduler: Scheduler) -> None:
    submit(scheduler, rows("q", lane=WRITER), tenant=QUIET)
    submit(scheduler, rows("p", lane=WRITER), tenant="person")

    def take() -> Work | None:
        return scheduler.take_row(
            "generation", lambda _: True, may_begin=lambda work: work.tenant != QUIET
        )

    first = take()
    assert first is not None
    assert first.payload == "p"
    assert take() is None


def test_a_tenant_saves_up_no_claim_while_away(scheduler: Scheduler) -> None:
    submit(scheduler, rows("a", lane=WRITER, tokens=10), tenant="away")
    assert scheduler.take_row("generation", lambda _: True)
    submit(scheduler, rows("b" * 30, lane=WRITER, tokens=10), tenant="busy")
    for _ in range(20):
        assert scheduler.take_row("generation", lambda _: True)
    submit(scheduler, rows("a" * 10, lane=WRITER, tokens=10), tenant="away")
    taken = [scheduler.take_row("generation", lambda _: True) for _ in range(6)]
    assert [work.payload for work in taken if work].count("a") == 3


def test_tokens_that_were_not_written_are_given_back(scheduler: Scheduler) -> None:
    submit(scheduler, rows("a" * 4, lane=WRITER, tokens=100), tenant="brief")
    submit(scheduler, rows("b" * 4, lane=WRITER, tokens=40), tenant="other")
    first = scheduler.take_row("generation", lambda _: True)
    assert first is not None
    first.unused = 90
    scheduler.answer(first, "A")
    taken = [scheduler.take_row("generation", lambda _: True) for _ in range(2)]
    assert "".join(work.payload for work in taken if work) == "ba"


def test_a_row_that_fails_or_that_nobody_waits_for_gives_the_rest_back(
    scheduler: Scheduler,
) -> None:
    """Whoever hangs up in the middle of a text has had no more of it."""
    ticket = submit(scheduler, rows("a", lane=WRITER, tokens=100), tenant="brief")
    submit(scheduler, rows("aaa", lane=WRITER, tokens=100), tenant="brief")
    submit(scheduler, rows("b" * 4, lane=WRITER, tokens=40), tenant="other")
    first = take(scheduler, "generation")
    first.unused = 90
    scheduler.cancel(ticket, Unavailable("gone"))
    scheduler.fail(first, Unavailable("gone"))
    scheduler.fail(first, Unavailable("gone"))  # once is enough
    assert [take(scheduler, "generation").payload for _ in range(3)] == ["b", "a", "b"]


def test_a_tenant_that_comes_does_not_wait_for_what_others_are_given_back(clock: Clock) -> None:
    """One of many rows that may be long and are short has begun when another tenant comes."""
    scheduler = Scheduler(max_rows=1000, clock=clock)
    submit(scheduler, rows("a" * 500, lane=WRITER, tokens=60_000), tenant="many")
    running = take(scheduler, "generation")
    running.unused = 60_000
    submit(scheduler, rows("b", lane=WRITER, tokens=100), tenant="one")
    running.unused -= 100
    scheduler.answer(running, "A")
    own = take(scheduler, "generation")
    assert own.payload == "b"
    scheduler.answer(own, "B")
    # what runs for others still comes before them in the order of turns
    running = take(scheduler, "generation")
    running.unused = 60_000
    submit(scheduler, rows("b" * 3, lane=WRITER, tokens=30_000), tenant="one")
    assert "".join(take(scheduler, "generation").payload for _ in range(4)) == "bbab"


def test_one_tenant_cannot_fill_the_queue(clock: Clock) -> None:
    scheduler = Scheduler(max_rows=10, max_tenant_rows=4, clock=clock)
    scheduler.admit(3, tenant="greedy")
    with pytest.raises(TooMany, match="your requests hold 3 of 4 rows"):
        scheduler.admit(2, tenant="greedy")
    scheduler.admit(6, tenant="other")  # more than its bound, but all alone in it
    with pytest.raises(TooMany, match="the queue holds 9 of 10 rows"):
        scheduler.admit(2, tenant="third")


def test_rows_to_write_are_taken_one_by_one_in_turn(scheduler: Scheduler) -> None:
    submit(scheduler, rows("abc", lane=WRITER))
    submit(scheduler, rows("x", lane=WRITER))
    assert scheduler.take() is None  # they make no batch
    taken = iter(lambda: scheduler.take_row("generation", lambda _: True), None)
    assert "".join(work.payload for work in taken if work) == "axbc"
    assert not scheduler.has_work()


def test_one_request_among_many_for_another_adapter_keeps_its_place(scheduler: Scheduler) -> None:
    queue = "aaaa" + "b" + "a" * 40
    for name in queue:
        submit(scheduler, rows(name, lane=WRITER))
    taken = iter(lambda: scheduler.take_row("generation", lambda _: True), None)
    assert "".join(work.payload for work in taken if work) == queue


def test_a_row_without_room_is_not_overtaken(scheduler: Scheduler) -> None:
    submit(scheduler, rows("L", lane=WRITER, tokens=50))
    submit(scheduler, rows("s", lane=WRITER))
    assert scheduler.take_row("generation", lambda work: work.tokens < 10) is None
    first = scheduler.take_row("generation", lambda _: True)
    assert first is not None
    assert first.payload == "L"


def test_a_row_to_write_that_waited_too_long_is_not_begun(
    scheduler: Scheduler, clock: Clock
) -> None:
    ticket = submit(scheduler, rows("a", lane=WRITER), deadline=110.0)
    clock.now = 111.0
    assert scheduler.take_row("generation", lambda _: True) is None
    assert error_of(ticket.answers).code == "deadline_exceeded"


def test_a_batch_stays_within_its_tokens_with_padding(scheduler: Scheduler) -> None:
    submit(scheduler, rows("ab", tokens=30))
    submit(scheduler, rows("cd", tokens=40))
    # three rows padded to 40 would be 120 tokens
    assert names(scheduler.take()) == "ac"
    assert names(scheduler.take()) == "bd"


def test_a_row_that_does_not_fit_begins_the_next_batch(scheduler: Scheduler) -> None:
    submit(scheduler, rows("a", tokens=10))
    submit(scheduler, rows("L", tokens=90))
    submit(scheduler, rows("bc", tokens=10))
    assert names(scheduler.take()) == "abc"
    submit(scheduler, rows("defg", tokens=10))
    assert names(scheduler.take())[0] == "L"


def test_a_row_larger_than_the_bound_is_a_batch_of_its_own(scheduler: Scheduler) -> None:
    submit(scheduler, rows("Hi", tokens=500))
    assert [names(scheduler.take()), names(scheduler.take())] == ["H", "i"]


def test_answers_come_in_the_order_of_the_rows(scheduler: Scheduler) -> None:
    ticket = submit(scheduler, rows("abcdef"))
    first, second = scheduler.take(), scheduler.take()
    answer(scheduler, second)
    assert not ticket.answers.done()
    answer(scheduler, first)
    assert ticket.answers.result(timeout=0) == list("ABCDEF")
    assert ticket.ended.done()


def test_one_failed_row_ends_its_request_and_no_other(scheduler: Scheduler) -> None:
    bad = submit(scheduler, rows("abcdef"))
    good = submit(scheduler, rows("x"))
    batch = scheduler.take()
    assert batch is not None
    assert names(batch) == "axbc"
    scheduler.fail(batch.works[0], Unavailable("broken row"))
    assert error_of(bad.answers).message == "broken row"
    # its rows in the running forward end with it; what waited is not run any more
    assert not bad.ended.done()
    for work in batch.works[1:]:
        scheduler.answer(work, work.payload.upper())
    assert good.answers.result(timeout=0) == ["X"]
    assert bad.ended.done()
    assert scheduler.take() is None


def test_a_cancelled_request_loses_its_waiting_rows_only(scheduler: Scheduler) -> None:
    ticket = submit(scheduler, rows("abcdef"))
    running = scheduler.take()
    scheduler.cancel(ticket, Unavailable("gone"))
    assert error_of(ticket.answers).message == "gone"
    assert scheduler.take() is None
    assert not ticket.ended.done()
    answer(scheduler, running)
    assert ticket.ended.done()
    scheduler.cancel(ticket, Unavailable("again"))
    assert error_of(ticket.answers).message == "gone"


def test_a_request_past_its_deadline_is_not_run(scheduler: Scheduler, clock: Clock) -> None:
    late = submit(scheduler, rows("abcdef"), deadline=clock.now + 5)
    in_time = submit(scheduler, rows("x"), deadline=clock.now + 50)
    clock.now += 10
    assert names(scheduler.take()) == "x"
    assert error_of(late.answers).code == "deadline_exceeded"
    assert late.ended.done()
    assert not in_time.answers.done()
    assert scheduler.state().rows_expired == 6


def test_a_full_queue_refuses_and_says_when_to_come_back(scheduler: Scheduler) -> None:
    first = scheduler.admit(8)
    with pytest.raises(TooMany) as refused:
        scheduler.admit(3)
    assert refused.value.code == "queue_full"
    assert refused.value.status == 429
    assert refused.value.retry_after_seconds == 1
    scheduler.admit(2)
    first.close()
    first.close()  # giving back twice must not make room twice
    scheduler.admit(8)
    with pytest.raises(TooMany):
        scheduler.admit(1)


def test_retry_after_follows_the_measured_speed(scheduler: Scheduler) -> None:
    submit(scheduler, rows("ab"))
    batch = scheduler.take()
    assert batch is not None
    scheduler.finished(2, seconds=8.0)  # 4 s for each row
    scheduler.admit(10)
    with pytest.raises(TooMany) as refused:
        scheduler.admit(1)
    assert refused.value.retry_after_seconds == 40


def test_a_request_larger_than_the_queue_may_enter_an_idle_process(scheduler: Scheduler) -> None:
    scheduler.admit(11).close()
    scheduler.admit(1)
    with pytest.raises(TooMany):
        scheduler.admit(11)


def test_closing_ends_what_waits_and_refuses_what_comes(scheduler: Scheduler) -> None:
    waiting = submit(scheduler, rows("abcdef"))
    running = scheduler.take()
    scheduler.close(Unavailable("closing", code="shutting_down"))
    assert error_of(waiting.answers).code == "shutting_down"
    with pytest.raises(Unavailable):
        scheduler.admit(1)
    late = submit(scheduler, rows("x"))
    assert error_of(late.answers).code == "shutting_down"
    assert late.ended.done()
    answer(scheduler, running)
    assert waiting.ended.done()


def test_work_wakes_the_owner(scheduler: Scheduler) -> None:
    woken: list[bool] = []
    scheduler.on_work(lambda: woken.append(scheduler.has_work()))
    submit(scheduler, rows("a"))
    assert woken == [True]


FORWARDED = Lane("smollm2", "forwarded")


def take(scheduler: Scheduler, family: Family) -> Work:
    work = scheduler.take_row(family, lambda _: True)
    assert work is not None
    return work


def test_a_row_that_was_taken_waits_for_another_taker(scheduler: Scheduler) -> None:
    ticket = submit(scheduler, rows("ab", lane=FORWARDED, tokens=5), tenant="one")
    submit(scheduler, rows("c", lane=WRITER, tokens=5), tenant="two")
    scheduler.hand_over(take(scheduler, "forwarded"), "generation")
    assert scheduler.state().rows_waiting == 3
    assert scheduler.has_work()
    # what was not written is not charged: both tenants are level, and the other came first
    assert [take(scheduler, "generation").payload for _ in range(2)] == ["c", "a"]
    assert take(scheduler, "forwarded").payload == "b"
    assert not ticket.answers.done()


def test_a_row_is_not_handed_over_when_nobody_waits_for_it(scheduler: Scheduler) -> None:
    ticket = submit(scheduler, rows("a", lane=FORWARDED))
    work = take(scheduler, "forwarded")
    scheduler.cancel(ticket, Unavailable("gone"))
    scheduler.hand_over(work, "generation")
    assert ticket.ended.done()
    other = submit(scheduler, rows("b", lane=FORWARDED))
    work = take(scheduler, "forwarded")
    scheduler.close(Unavailable("shutting down"))
    scheduler.hand_over(work, "generation")
    assert error_of(other.answers).message == "shutting down"
    assert scheduler.state().rows_waiting == 0
