"""Kills, cancels, windows that are over, parts of the service that are away."""

import signal

import openai
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.engine import make_url

from app.batches.tries import TRIES
from core.db.models import Batch
from core.storage import open_store
from tests.processes import wait_until
from tests.service.batches.office import DEADLY, PATIENCE_SECONDS, Office, asking, jsonl

TEXTS = [f"text {place}" for place in range(60)]
HELD = TEXTS[30]

BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


def hold_in_the_middle(office: Office, **changed: object) -> str:
    """A batch that cannot go on, with its first half kept."""
    office.twin.held = {HELD}
    made = office.create(asking(TEXTS))
    office.start(**changed)
    office.wait(made.id, kept=30)
    return made.id


def wait_for_news(office: Office, batch_id: str) -> None:
    """Wait until the process has read the batch's row since, and acted on it: for two beats."""
    seen = set()

    def has_beaten_twice() -> bool:
        with office.edge.database.read() as session:
            query = sa.select(Batch.lease_until).where(Batch.id == batch_id)
            seen.add(session.scalars(query).one())
        return len(seen) > 2

    wait_until(has_beaten_twice)


def leftovers(office: Office) -> list[str]:
    return list(open_store(office.edge.settings).list("batches"))


@pytest.mark.parametrize(
    ("database_url", "storage"),
    [("sqlite", "directory"), ("postgres", "directory"), ("postgres", "s3")],
    indirect=True,
)
def test_a_killed_process_loses_nothing(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    office.kill(office.processes[0])
    assert office.get(batch_id).status == "in_progress"
    office.twin.open()
    office.start()
    done = office.wait(batch_id)
    assert done.status == "completed"
    assert office.ids(done.output_file_id) == TEXTS
    # what was kept was not asked again; what was under way was
    assert all(office.twin.asked[text] == 1 for text in TEXTS[:30])
    assert office.twin.asked[HELD] == 2
    wait_until(lambda: leftovers(office) == [])


@BOTH
def test_processes_take_over_again_and_again(office: Office) -> None:
    office.twin.held = set(TEXTS[20::20])
    made = office.create(asking(TEXTS))
    for kept in (20, 40):
        process = office.start()
        office.wait(made.id, kept=kept)
        office.kill(process)
        office.twin.held.discard(TEXTS[kept])
    office.twin.open()
    office.start()
    office.start()  # which finds nothing to do
    done = office.wait(made.id)
    assert office.ids(done.output_file_id) == TEXTS
    assert done.error_file_id is None


@BOTH
def test_a_process_that_ends_in_order_hands_over_at_once(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    office.processes[0].send_signal(signal.SIGTERM)
    assert office.processes[0].wait(30) == 0
    with office.edge.database.read() as session:
        row = session.get(Batch, batch_id)
        assert row is not None
        assert (row.owner, row.losses) == (None, -1)
    office.twin.open()
    office.start()
    assert office.ids(office.wait(batch_id).output_file_id) == TEXTS


def test_a_process_that_waits_to_ask_again_hands_over_at_once(office: Office) -> None:
    texts = TEXTS[:20]
    office.twin.held = {texts[10]}
    made = office.create(asking(texts))
    process = office.start()
    wait_until(lambda: office.twin.asked[texts[10]] == 1)
    # what is asked from now on is to come back later, and waits for that
    office.twin.is_busy = True
    office.twin.open()
    wait_until(lambda: sum(office.twin.asked.values()) > len(texts))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with office.edge.database.read() as session:
        row = session.get(Batch, made.id)
        assert row is not None
        assert (row.owner, row.losses) == (None, -1)
        assert row.completed == row.kept
    office.twin.is_busy = False
    office.start()
    assert office.ids(office.wait(made.id).output_file_id) == texts


@BOTH
def test_a_process_that_was_stopped_meanwhile_writes_nothing(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    office.processes[0].send_signal(signal.SIGSTOP)
    office.start()
    wait_until(lambda: office.twin.asked[HELD] == 2)
    office.processes[0].send_signal(signal.SIGCONT)
    office.twin.open()
    assert office.ids(office.wait(batch_id).output_file_id) == TEXTS


def test_a_batch_that_kills_its_processes_is_given_up(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    office.kill(office.processes[0])
    with office.edge.database.write() as session:
        session.execute(sa.update(Batch).values(losses=office.edge.settings.max_attempts))
    office.start()
    failed = office.wait(batch_id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.code for error in failed.errors.data] == ["batch_given_up"]
    assert office.ids(failed.output_file_id) == TEXTS[:30]


@BOTH
def test_a_cancel_keeps_what_is_answered(office: Office) -> None:
    batch_id = hold_in_the_middle(office, cancel_grace_seconds=PATIENCE_SECONDS)
    asked = office.client.batches.cancel(batch_id)
    assert (asked.status, asked.output_file_id) == ("cancelling", None)
    assert office.client.batches.cancel(batch_id).status == "cancelling"
    wait_for_news(office, batch_id)
    office.twin.open()
    done = office.wait(batch_id)
    assert (done.status, done.completed_at) == ("cancelled", None)
    assert done.cancelled_at is not None
    answered, unasked = office.ids(done.output_file_id), office.read(done.error_file_id)
    assert answered + [row["custom_id"] for row in unasked] == TEXTS
    assert HELD in answered
    assert {(row["response"], row["error"]["code"]) for row in unasked} == {
        (None, "batch_cancelled")
    }
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (60, len(answered), 0)
    assert office.client.batches.cancel(batch_id).status == "cancelled"
    wait_until(lambda: leftovers(office) == [])


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_an_answer_that_does_not_come_is_not_waited_for(office: Office, end: str) -> None:
    """It may take ten minutes more; what stands behind it in the file is there."""
    batch_id = hold_in_the_middle(office, cancel_grace_seconds=0.1)
    wait_until(lambda: office.twin.asked[TEXTS[45]] == 1)  # of the 16 that may wait for another
    if end == "cancelled":
        office.client.batches.cancel(batch_id)
    else:
        with office.edge.database.write() as session:
            session.execute(sa.update(Batch).values(expires_at=Batch.created_at))
    done = office.wait(batch_id)
    assert done.status == end
    answered, unasked = office.ids(done.output_file_id), office.read(done.error_file_id)
    assert [row["error"]["code"] for row in unasked] == [f"batch_{end}"] * len(unasked)
    without = [row["custom_id"] for row in unasked]
    assert without[0] == HELD
    assert answered == [text for text in TEXTS if text not in without]
    assert set(TEXTS[31:40]) <= set(answered)
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (60, len(answered), 0)


def test_a_cancel_before_anybody_looked(office: Office) -> None:
    made = office.create(asking(["a"]))
    assert office.client.batches.cancel(made.id).status == "cancelling"
    office.start()
    done = office.wait(made.id)
    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)
    assert office.twin.asked == {}


def test_an_ended_batch_is_not_cancelled(office: Office) -> None:
    office.start()
    done = office.wait(office.create(asking(["a"])).id)
    with pytest.raises(openai.ConflictError) as told:
        office.client.batches.cancel(done.id)
    assert told.value.code == "batch_ended"
    assert told.value.response.headers["x-should-retry"] == "false"


def test_a_window_that_is_over_keeps_what_is_answered(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    with office.edge.database.write() as session:
        session.execute(sa.update(Batch).values(expires_at=Batch.created_at))
    wait_until(lambda: office.get(batch_id).expires_at == office.get(batch_id).created_at)
    office.kill(office.processes[0])
    office.twin.open()
    office.start()
    done = office.wait(batch_id)
    assert done.status == "expired"
    assert done.expired_at is not None
    answered, unasked = office.ids(done.output_file_id), office.read(done.error_file_id)
    assert answered + [row["custom_id"] for row in unasked] == TEXTS
    assert len(answered) >= 30
    assert {row["error"]["code"] for row in unasked} == {"batch_expired"}


def test_a_file_of_a_batch_that_has_not_ended_is_kept(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    file_id = office.get(batch_id).input_file_id
    with pytest.raises(openai.ConflictError) as told:
        office.client.files.delete(file_id)
    assert told.value.code == "file_in_use"
    office.twin.open()
    done = office.wait(batch_id)
    for own in (file_id, str(done.output_file_id)):
        assert office.client.files.delete(own).deleted
        with pytest.raises(openai.NotFoundError) as gone:
            office.client.files.content(own)
        assert gone.value.code == "file_not_found"
    assert list(open_store(office.edge.settings).list("files")) == []
    assert office.get(batch_id).status == "completed"


def test_who_has_many_gives_way_to_who_has_none(office: Office) -> None:
    office.edge.publish("theirs", key=office.edge.other_key)
    office.twin.held = {HELD}
    many = [office.create(asking([HELD, f"of {place}"])).id for place in range(4)]
    office.start()
    for batch_id in many:
        office.wait(batch_id, "in_progress")
    file = office.other.files.create(
        file=("a.jsonl", jsonl(asking(["few"], "theirs"))), purpose="batch"
    )
    made = office.other.batches.create(
        input_file_id=file.id, endpoint="/predict", completion_window="24h"
    )
    wait_until(lambda: office.other.batches.retrieve(made.id).status == "completed")
    assert {office.get(batch_id).status for batch_id in many} == {"in_progress"}
    office.twin.open()
    for place, batch_id in enumerate(many):
        assert office.ids(office.wait(batch_id).output_file_id) == [HELD, f"of {place}"]


def test_who_has_had_a_turn_gives_way_to_who_has_none(office: Office) -> None:
    office.edge.publish("theirs", key=office.edge.other_key)
    office.twin.seconds = 0.1
    texts = [f"of a long one {place}" for place in range(450)]
    long = office.create(asking(texts))
    office.start(batches_at_once=1, batch_turn_seconds=0.5)
    office.wait(long.id, kept=1)
    file = office.other.files.create(
        file=("a.jsonl", jsonl(asking(["few"], "theirs"))), purpose="batch"
    )
    short = office.other.batches.create(
        input_file_id=file.id, endpoint="/predict", completion_window="24h"
    )
    wait_until(lambda: office.other.batches.retrieve(short.id).status == "completed")
    assert office.get(long.id).status == "in_progress"
    office.twin.open()
    assert office.ids(office.wait(long.id).output_file_id) == texts
    # what was under way when it gave way was waited for
    assert max(office.twin.asked.values()) == 1


def test_a_full_queue_is_waited_out(office: Office) -> None:
    office.twin.is_busy = True
    made = office.create(asking(["a", "b"]))
    office.start()
    wait_until(lambda: office.twin.asked["a"] >= 2)
    office.twin.is_busy = False
    done = office.wait(made.id)
    counts = done.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed) == (2, 0)


def test_a_deadly_request_does_not_take_its_neighbours_along(office: Office) -> None:
    texts = [*TEXTS[:5], DEADLY, *TEXTS[5:10]]
    office.start()
    done = office.wait(office.create(asking(texts)).id)
    assert office.ids(done.output_file_id) == TEXTS[:10]
    assert office.twin.asked[DEADLY] == TRIES
    (refused,) = office.read(done.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == (DEADLY, 503)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_database_that_is_away_for_seconds_is_waited_for(office: Office) -> None:
    batch_id = hold_in_the_middle(office)
    url = make_url(office.edge.settings.database_url)
    name = sql.Identifier(str(url.database))
    admin = f"postgresql://postgres@127.0.0.1:{url.port}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [url.database],
            )
            office.twin.open()
            wait_until(lambda: "no beat" in office.log() and "waits" in office.log())
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    done = office.wait(batch_id)
    assert office.ids(done.output_file_id) == TEXTS
    assert done.error_file_id is None
