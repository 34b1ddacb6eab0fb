"""The supervisor against real child processes that behave as told; rows are a twin in memory."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import wait_until
from worker.heartbeat import Fenced, Unreachable
from worker.protocol import Failure
from worker.trainer_slot import TrainerSlot, device_environments
from worker.training import ClaimedJob, Supervisor
from worker.watching import Limits

CHILD = Path(__file__).with_name("scripted_child.py")
ROOT = Path(__file__).parents[3]
OPEN_FILES = Path("/proc/self/fd")


class Rows:
    """The job's row in memory; says what was written."""

    def __init__(self, *, attempt: int = 1, max_attempts: int = 2) -> None:
        self.job = ClaimedJob("job_1", "ten_1", attempt, max_attempts)
        self.claimable = True
        self.wish: str | None = None
        self.fenced = False
        self.reachable = True
        self.written: list[str] = []
        self.sent: list[str] = []
        self.told: list[str] = []
        self.failure: Failure | None = None

    def claim(self, job_id: str) -> ClaimedJob | None:
        return self.job if self.claimable else None

    def beat(self, job: ClaimedJob) -> str | None:
        if not self.reachable:
            raise Unreachable
        if self.fenced:
            raise Fenced
        return self.wish

    def read_wish(self, job: ClaimedJob) -> str | None:
        return self.wish

    def _write(self, what: str) -> bool:
        if not self.reachable:
            raise Unreachable
        self.written.append(what)
        return not self.fenced

    def finish_cancelled(self, job: ClaimedJob) -> bool:
        return self._write("cancelled")

    def finish_paused(self, job: ClaimedJob) -> bool:
        return self._write("paused")

    def finish_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        self.failure = failure
        return self._write("failed")

    def release_drained(self, job: ClaimedJob) -> bool:
        return self._write("drained")

    def release_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        self.failure = failure
        return self._write("released")

    def forget_checkpoints(self, job: ClaimedJob) -> None:
        self.written.append("forgotten")

    def send_training(self, job_id: str, *, priority: int = 0) -> bool:
        self.sent.append(job_id if priority == 0 else f"{job_id} at {priority}")
        return True

    def send_housekeeping(self, task: str, id: str) -> bool:
        self.sent.append(f"{task} {id}")
        return True

    def send_deliveries(self, object_id: str) -> bool:
        self.told.append(object_id)
        return True


class Pair(Rows):
    """Rows of two jobs: the second waits in the queue, and may join the first."""

    def __init__(self, *, attempt: int = 1) -> None:
        super().__init__(attempt=attempt)
        self.waiting = [ClaimedJob("job_2", "ten_1", 1, 2)]
        self.guest_wish: str | None = None

    def claim_beside(self, job: ClaimedJob) -> ClaimedJob | None:
        assert job.job_id == "job_1"
        return self.waiting.pop() if self.waiting else None

    def read_wish(self, job: ClaimedJob) -> str | None:
        return self.guest_wish if job.job_id == "job_2" else self.wish

    def beat(self, job: ClaimedJob) -> str | None:
        return self.read_wish(job)

    def finish_cancelled(self, job: ClaimedJob) -> bool:
        return self._write(f"{job.job_id} cancelled")

    def release_drained(self, job: ClaimedJob) -> bool:
        return self._write(f"{job.job_id} drained")

    def forget_checkpoints(self, job: ClaimedJob) -> None:
        self.written.append(f"{job.job_id} forgotten")


class Stage:
    """A supervisor over one slot with a scripted child."""

    def __init__(self, rows: Rows, slot: TrainerSlot, jobs_together: int) -> None:
        self.rows = rows
        self.slot = slot
        self.draining = threading.Event()
        self.supervisor = Supervisor(
            attempts=rows,
            sender=rows,
            slots=[slot],
            draining=self.draining,
            limits=Limits(
                lease_seconds=0.5,
                heartbeat_seconds=0.02,
                cancel_grace_seconds=0.3,
                silence_seconds=0.4,
                stall_seconds=0.6,
            ),
            jobs_together=jobs_together,
        )

    def train(self, during: Callable[[], None] | None = None) -> list[str]:
        """Run the task; do something once the child has the job."""
        if during is None:
            self.supervisor.train("job_1")
            return self.rows.written
        task = threading.Thread(target=self.supervisor.train, args=("job_1",))
        task.start()
        child = self.slot.current(5)
        assert child is not None
        during()
        task.join(5)
        assert not task.is_alive()
        return self.rows.written


@contextmanager
def stage(mode: str, rows: Rows | None = None, *, jobs_together: int = 1) -> Iterator[Stage]:
    slot = TrainerSlot(
        mode, [sys.executable, str(CHILD), mode], {"PYTHONPATH": str(ROOT), "PATH": "/bin"}
    )
    slot.start()
    try:
        assert slot.current(10) is not None
        yield Stage(rows or Rows(), slot, jobs_together)
    finally:
        slot.close()


def test_a_trainer_that_cannot_be_started_leaves_no_descriptor_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = len(list(OPEN_FILES.iterdir()))
    slot = TrainerSlot("broken", ["/no/such/program"], {})
    slot.start()
    try:
        wait_until(lambda: caplog.text.count("cannot start a trainer") >= 2, seconds=10)
    finally:
        slot.close()
    assert len(list(OPEN_FILES.iterdir())) <= before


def test_a_published_job_leaves_no_checkpoints() -> None:
    with stage("succeed") as it:
        assert it.train() == ["forgotten"]
        assert it.rows.told == ["job_1"]


def test_the_child_serves_job_after_job() -> None:
    with stage("succeed") as it:
        first = it.slot.current(1)
        it.train()
        it.train()
        assert it.slot.current(1) is first
        assert it.rows.written == ["forgotten", "forgotten"]


def test_the_next_job_joins_a_child_that_has_room() -> None:
    with stage("roomy", Pair(), jobs_together=2) as it:
        assert sorted(it.train()) == ["job_1 forgotten", "job_2 forgotten"]


@pytest.mark.parametrize(("jobs_together", "attempt"), [(1, 1), (2, 2)])
def test_nobody_joins_where_it_is_switched_off_or_a_job_was_tried_before(
    jobs_together: int, attempt: int
) -> None:
    rows = Pair(attempt=attempt)
    with stage("roomy", rows, jobs_together=jobs_together) as it:
        assert it.train(lambda: setattr(rows, "wish", "cancel")) == [
            "job_1 cancelled",
            "job_1 forgotten",
        ]
        assert len(rows.waiting) == 1


def test_a_child_that_is_killed_for_one_job_costs_the_other_no_attempt() -> None:
    rows = Pair()
    rows.guest_wish = "cancel"
    with stage("roomy-deaf", rows, jobs_together=2) as it:
        assert sorted(it.train()) == ["job_1 drained", "job_2 cancelled", "job_2 forgotten"]
        assert rows.sent == ["job_1"]


def test_a_second_message_is_dropped() -> None:
    rows = Rows()
    rows.claimable = False
    with stage("die", rows) as it:
        assert it.train() == []
        assert rows.sent == []


def test_a_dead_child_costs_one_attempt_and_the_job_is_sent_again() -> None:
    with stage("die") as it:
        assert it.train() == ["released"]
        assert (it.rows.sent, it.rows.told) == (["job_1"], [])
        assert it.rows.failure is not None
        assert it.rows.failure.code == "trainer_crashed"
        assert it.slot.current(5) is not None  # replaced


def test_an_outage_is_not_met_again_at_once() -> None:
    """The sweep sends the job in a while."""
    with stage("away") as it:
        assert it.train() == ["released"]
        assert it.rows.sent == []


def test_the_last_attempt_fails_with_the_reason() -> None:
    with stage("die", Rows(attempt=2)) as it:
        assert it.train() == ["failed"]
        assert (it.rows.sent, it.rows.told) == ([], ["job_1"])


@pytest.mark.parametrize(
    ("wish", "written"), [("cancel", ["cancelled", "forgotten"]), ("pause", ["paused"])]
)
@pytest.mark.parametrize("mode", ["obey", "deaf"])
def test_what_the_owner_wants_is_done_even_by_a_child_that_does_not_listen(
    mode: str, wish: str, written: list[str]
) -> None:
    with stage(mode) as it:
        child = it.slot.current(1)
        assert child is not None
        assert it.train(lambda: setattr(it.rows, "wish", wish)) == written
        assert it.rows.told == (["job_1"] if wish == "cancel" else [])
        assert (child.returncode is None) is (mode == "obey")


def test_a_job_that_is_cancelled_while_it_is_being_paused_is_cancelled() -> None:
    class Cancelling(Rows):
        def finish_paused(self, job: ClaimedJob) -> bool:
            return False  # the table of states does not allow it

    rows = Cancelling()
    with stage("obey", rows) as it:
        assert it.train(lambda: setattr(rows, "wish", "pause")) == ["cancelled", "forgotten"]


def test_a_sweep_is_told_of_the_end_of_its_job() -> None:
    rows = Rows()
    rows.job = ClaimedJob("job_1", "ten_1", 1, 2, priority=6, sweep_id="swp_1")
    with stage("succeed", rows) as it:
        it.train()
        assert rows.sent == ["tunery.advance_sweep swp_1"]


def test_a_job_goes_back_to_its_place_in_the_queue() -> None:
    rows = Rows()
    rows.job = ClaimedJob("job_1", "ten_1", 1, 2, priority=6)
    with stage("obey", rows) as it:
        it.train(it.draining.set)
        assert rows.sent == ["job_1 at 6"]


@pytest.mark.parametrize("mode", ["obey", "deaf"])
def test_a_drain_gives_the_job_back(mode: str) -> None:
    with stage(mode) as it:
        assert it.train(it.draining.set) == ["drained"]
        assert it.rows.sent == ["job_1"]


def test_a_draining_worker_claims_nothing() -> None:
    with stage("succeed") as it:
        it.draining.set()
        assert it.train() == []
        assert it.rows.sent == ["job_1"]


def test_a_fenced_attempt_is_killed_and_writes_nothing() -> None:
    with stage("deaf") as it:
        child = it.slot.current(1)
        assert child is not None
        assert it.train(lambda: setattr(it.rows, "fenced", True)) == []
        assert child.returncode == -9


def test_without_a_database_the_supervisor_fences_itself() -> None:
    with stage("deaf") as it:
        child = it.slot.current(1)
        assert child is not None
        assert it.train(lambda: setattr(it.rows, "reachable", False)) == []
        assert child.returncode == -9


@pytest.mark.parametrize("mode", ["mute", "stalled"])
def test_a_child_without_signs_of_life_is_killed_and_its_job_goes_on(mode: str) -> None:
    with stage(mode) as it:
        child = it.slot.current(1)
        assert child is not None
        assert it.train() == ["released"]
        assert it.rows.failure is not None
        assert it.rows.failure.code == "trainer_hung"
        assert child.returncode == -9


def test_a_child_that_works_is_not_taken_for_hung() -> None:
    # "deaf" ticks like a child that trains
    with stage("deaf") as it:

        def outlive_the_limits_then_cancel() -> None:
            threading.Event().wait(1.0)
            it.rows.wish = "cancel"

        assert it.train(outlive_the_limits_then_cancel) == ["cancelled", "forgotten"]


def test_closing_a_slot_ends_its_child() -> None:
    with stage("deaf") as it:
        child = it.slot.current(1)
        assert child is not None
    assert child.returncode is not None


def test_several_slots_see_one_device_each() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "2,5", "A": "b"}
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in device_environments(inherited, 2, None)]
    assert seen == ["2", "5"]
    assert "CUDA_VISIBLE_DEVICES" not in device_environments({}, 1, None)[0]
    pairs = device_environments({"CUDA_VISIBLE_DEVICES": "2,5,6,7"}, 2, None, per_job=2)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in pairs] == ["2,5", "6,7"]
    assert device_environments({}, 2, 3)[1] == {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "3"}
