"""Nothing is lost when many write, and troubles are told in our words."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from core.db import Database, clock, engine, jobs, open_database, tenants
from core.db.models import Job, Tenant
from core.errors import ServiceError, Unavailable
from core.settings import load_settings
from tests.service.core.world import EXPIRED, World, at_once, make_world
from tests.service.servers.postgres import run_postgres
from tests.service.servers.processes import free_port, wait_until

ROOT = Path(__file__).parents[3]

# reads, adds and writes: unless the writers take turns, updates are lost
COUNT = """
import sys
import sqlalchemy as sa
from core.db import Database, jobs
from core.db.models import Job
url, tenant_id, job_id, times = sys.argv[1:]
database = Database(url)
for _ in range(int(times)):
    with database.write() as session:
        job = session.scalars(
            sa.select(Job).where(Job.id == job_id).with_for_update(key_share=True)
        ).one()
        job.progress = {"count": job.progress["count"] + 1}
"""


def test_processes_that_read_and_write_lose_no_update(world: World, database_url: str) -> None:
    job = world.job()
    world.put(job.id, progress={"count": 0})
    command = [sys.executable, "-c", COUNT, database_url, world.tenant_id, job.id, "60"]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert world.get(job.id).progress == {"count": 180}


def test_threads_that_read_and_write_lose_no_update(world: World) -> None:
    job = world.job()
    world.put(job.id, progress={"count": 0})

    def add(_: int) -> None:
        for _turn in range(15):
            with world.database.write() as session:
                query = sa.select(Job).where(Job.id == job.id).with_for_update(key_share=True)
                row = session.scalars(query).one()
                assert row.progress is not None
                row.progress = {"count": row.progress["count"] + 1}

    at_once(add, list(range(6)))
    assert world.get(job.id).progress == {"count": 90}


def test_forty_threads_read_while_one_writes(world: World) -> None:
    ids = [world.job().id for _ in range(3)]

    def read(number: int) -> int:
        if number == 0:
            return len([world.job() for _ in range(5)])
        return len([world.get(job_id) for job_id in ids])

    assert at_once(read, list(range(40))) == [5] + [3] * 39


def test_a_reader_sees_one_state_and_never_writes(database: Database) -> None:
    world = make_world(database)
    with database.read() as session:
        before = session.scalars(sa.select(Tenant.name)).all()
        session.add(Tenant(id="ten_x", name="never kept"))
        session.flush()
    with database.read() as session:
        assert session.scalars(sa.select(Tenant.name)).all() == before
    assert world.tenant_id


def test_an_exception_in_the_block_takes_everything_back(database: Database) -> None:
    def create_and_break() -> None:
        with database.write() as session:
            tenants.create_tenant(session, name="half")
            raise KeyError("half way")

    with pytest.raises(KeyError):
        create_and_break()
    with database.read() as session:
        assert tenants.find_tenant(session, name="half") is None
    with database.write() as session:
        assert tenants.create_tenant(session, name="half").name == "half"


def test_rows_stay_usable_after_their_transaction(world: World) -> None:
    job = world.job(metadata={"team": "care"})
    assert (job.metadata_, job.status, job.created_at.tzinfo is not None) == (
        {"team": "care"},
        "queued",
        True,
    )


def test_the_database_s_clock_moves_within_a_transaction(database: Database) -> None:
    with database.write() as session:
        times = [session.scalar(sa.select(clock.now())) for _ in range(200)]
        later = session.scalar(sa.select(clock.later(3600)))
        earlier = session.scalar(sa.select(clock.later(-0.5)))
    assert times == sorted(times)  # type: ignore[type-var]
    assert len(set(times)) > 1
    assert later is not None
    assert earlier is not None
    assert times[-1] is not None
    assert 3599 < (later - times[-1]).total_seconds() < 3660
    assert (earlier - times[-1]).total_seconds() < 60


def test_ping(database: Database) -> None:
    database.ping()


@pytest.mark.parametrize("act", ["ping", "read", "write"])
def test_a_database_that_is_away_is_unavailable(act: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for url in (
        f"postgresql://user:secret@127.0.0.1:{free_port()}/x",
        f"sqlite:///{tmp_path}/file/tunery.db",
    ):
        database = open_database(load_settings(database_url=url))
        with pytest.raises(Unavailable) as caught:
            _touch(database, act)
        assert caught.value.code == "database_unavailable"
        assert caught.value.retry_after_seconds == 2
        assert "secret" not in caught.value.message
        assert str(tmp_path) not in caught.value.message
        database.dispose()


def _touch(database: Database, act: str) -> None:
    if act == "ping":
        database.ping()
        return
    with database.read() if act == "read" else database.write() as session:
        session.execute(sa.text("SELECT 1"))


def test_a_postgres_that_went_away_and_came_back_is_found_again() -> None:
    with run_postgres() as server:
        database = Database(server.url("postgres"))
        database.ping()
    with pytest.raises(Unavailable):
        database.ping()
    database.dispose()


def test_connections_that_the_server_has_ended_are_replaced(
    database: Database, database_url: str
) -> None:
    database.ping()
    if database.dialect == "postgresql":
        other = Database(database_url)
        with other.write() as session:
            session.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )
        other.dispose()
    database.ping()


@pytest.mark.timeout(60)
def test_a_process_stopped_in_a_transaction_stops_nobody_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine.POSTGRES_PATIENCE_MILLISECONDS, "lock_timeout", 200)
    database, stopped = Database(postgres_url), Database(postgres_url)
    world = make_world(database)
    job = world.job()
    world.claim(job.id, EXPIRED)
    monkeypatch.setitem(
        engine.POSTGRES_PATIENCE_MILLISECONDS, "idle_in_transaction_session_timeout", 1500
    )
    found: list[str] = []

    def is_swept() -> bool:
        try:
            found.extend(world.sweep())
        except Unavailable:
            return False
        return True

    def hold_for_ever() -> None:
        with stopped.write() as session:
            assert jobs.hold(session, job.id, 1)
            assert not is_swept()
            wait_until(is_swept, seconds=30)

    with pytest.raises(Unavailable):
        hold_for_ever()
    assert found == [job.id]
    database.dispose()
    stopped.dispose()


def test_a_full_disk_is_told_apart(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    def write_much() -> None:
        with database.write() as session:
            pages = session.scalar(sa.text("PRAGMA page_count"))
            session.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
            for number in range(10_000):
                session.add(Tenant(id=f"ten_{number}", name=f"{number:064d}"))
            session.flush()

    with pytest.raises(ServiceError) as caught:
        write_much()
    assert (caught.value.code, caught.value.status) == ("storage_full", 503)
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Tenant)) == 0
    database.dispose()
