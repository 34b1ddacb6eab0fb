"""A job's story is read whole, in order, by whoever follows it."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from core.db import Session, events, jobs
from core.states import JobStatus
from tests.service.core.world import World, at_once, make_world


def _append(session: Session, world: World, job_id: str, message: str, **values: object) -> int:
    return events.append(
        session,
        **{  # type: ignore[arg-type]
            "job_id": job_id,
            "tenant_id": world.tenant_id,
            "attempt": 1,
            "event": "log",
            "message": message,
        }
        | values,
    )


def test_events_come_in_order_in_pages(world: World) -> None:
    job, other = world.job(), world.job()
    with world.database.write() as session:
        for number in range(5):
            _append(session, world, job.id, f"line {number}", data={"number": number})
            _append(session, world, other.id, "not mine")
    seen: list[str] = []
    after, has_more = 0, True
    while has_more:
        with world.database.read() as session:
            page = events.page(session, world.tenant_id, job.id, after_seq=after, limit=2)
        assert len(page.items) <= 2
        seen += [row.message for row in page.items]
        after, has_more = page.items[-1].seq, page.has_more
    assert seen == ["queued", *(f"line {number}" for number in range(5))]


def _follow(world: World, job_id: str, done: Event) -> list[str]:
    """Read what is new again and again, as a client does, until the writers are done."""
    seen: list[str] = []
    after = 0
    while True:
        is_last_round = done.is_set()
        with world.database.read() as session:
            page = events.page(session, world.tenant_id, job_id, after_seq=after, limit=1000)
        seen += [row.message for row in page.items]
        after = page.items[-1].seq if page.items else after
        if is_last_round:
            return seen


def _write_lines(world: World, job_id: str, writer: int) -> None:
    for turn in range(10):
        with world.database.write() as session:
            _append(session, world, job_id, f"{writer}/{turn}")


def test_a_follower_misses_nothing_that_many_write(world: World) -> None:
    job = world.job()
    done = Event()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(_follow, world, job.id, done)
        at_once(lambda writer: _write_lines(world, job.id, writer), list(range(6)))
        done.set()
        seen = following.result(60)
    expected = {f"{writer}/{turn}" for writer in range(6) for turn in range(10)}
    assert set(seen) == expected | {"queued"}
    assert len(seen) == len(set(seen))


def test_an_event_waits_for_an_earlier_one_that_is_not_committed(world: World) -> None:
    # else a follower could see the later number, ask for what follows it, and miss the earlier
    job = world.job()
    first_is_written, second_is_committed = Event(), Event()

    def act(number: int) -> int:
        if number == 0:
            with world.database.write() as session:
                seq = _append(session, world, job.id, "first")
                first_is_written.set()
                assert not second_is_committed.wait(0.5)
                return seq
        assert first_is_written.wait(20)
        with world.database.write() as session:
            seq = _append(session, world, job.id, "second")
        second_is_committed.set()
        return seq

    first, second = at_once(act, [0, 1])
    assert first < second


def test_text_that_a_database_cannot_hold_is_mended(world: World) -> None:
    job = world.job()
    with world.database.write() as session:
        _append(session, world, job.id, "a\x00b", data={"x\x00": ["\x00", float("nan")]})
    with world.database.read() as session:
        row = events.page(session, world.tenant_id, job.id).items[-1]
    assert (row.message, row.data) == ("ab", {"x": ["", None]})


def test_a_metric_s_step_is_overwritten_by_the_attempt_that_does_it_again(world: World) -> None:
    job = world.job()
    points = [(1, 1, 2.0), (1, 2, 1.5), (1, 3, 1.25), (2, 2, 1.75), (2, 4, float("nan"))]
    with world.database.write() as session:
        for attempt, step, value in points:
            events.put_metric(
                session,
                job_id=job.id,
                tenant_id=world.tenant_id,
                attempt=attempt,
                name="train/loss",
                step=step,
                value=value,
            )
    with world.database.read() as session:
        rows = events.metrics(session, world.tenant_id, job.id, name="train/loss")
        middle = events.metrics(session, world.tenant_id, job.id, from_step=2, to_step=3)
        assert events.metrics(session, world.tenant_id, job.id, name="other") == []
    assert [(row.step, row.value, row.attempt) for row in rows] == [
        (1, 2.0, 1),
        (2, 1.75, 2),
        (3, 1.25, 1),
        (4, None, 2),
    ]
    assert [row.step for row in middle] == [2, 3]


def test_no_tenant_reads_another_s_story(world: World) -> None:
    job = world.job()
    other = make_world(world.database)
    with world.database.write() as session:
        events.put_metric(
            session,
            job_id=job.id,
            tenant_id=world.tenant_id,
            attempt=1,
            name="x",
            step=1,
            value=1.0,
        )
        assert events.page(session, other.tenant_id, job.id).items == []
        assert events.metrics(session, other.tenant_id, job.id) == []


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_the_last_event_tells_that_the_story_is_over(world: World, end: JobStatus) -> None:
    job = world.job()
    world.claim(job.id)
    error = {"code": "out_of_memory", "message": "too big", "param": None}
    with world.database.write() as session:
        assert jobs.hold(session, job.id, 1)
        _append(session, world, job.id, "step 1")
        values = {"error": error} if end is JobStatus.FAILED else {}
        assert jobs.finish(session, job.id, 1, end, **values)
    with world.database.read() as session:
        rows = events.page(session, world.tenant_id, job.id).items
    name = "error" if end is JobStatus.FAILED else "complete"
    assert [row.event for row in rows] == ["status", "status", "log", "status", name]
    assert rows[-1].data["status"] == end
    if end is JobStatus.FAILED:
        assert rows[-1].data["error"] == error
        assert (rows[-1].level, rows[-1].message) == ("error", "failed: too big")
