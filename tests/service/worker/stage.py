"""A small service around the workers: rows, objects, messages and worker processes under test."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.db import Database, adapters, checkpoints, estimates, events, jobs, tenants
from core.db import datasets as dataset_rows
from core.db.engine import make_engine
from core.db.models import Adapter, Checkpoint, Estimate, Job, JobEvent
from core.errors import Unavailable
from core.queue import JobQueue
from core.settings import Settings, child_environment
from core.states import TERMINAL, DatasetStatus, EstimateStatus, JobStatus
from core.storage import ObjectStore, dataset_key, open_store
from peft_engine.configs import JobSpec
from worker import recovery

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 30.0

LETTERS = {
    name: [{"text": f"{name} row {index}", "label": "ab"[index % 2]} for index in range(size)]
    for name, size in (("train", 8), ("validation", 2), ("test", 2))
}


def wait_until(
    condition: Callable[[], Any],
    *,
    what: str | Callable[[], str],
    seconds: float = DEADLINE_SECONDS,
) -> Any:
    """Wait until a condition holds and return its value; fail loudly at the deadline.

    Text of a function is made at the deadline, of what there is then.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, (
            f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        )
        pause.wait(0.02)
    return value


class WorkerUnderTest:
    """One Celery process, with its trainer child if it serves the queue ``training``."""

    def __init__(self, stage: "Stage", arguments: Sequence[str], log: Path) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", stage.app, *arguments],
            cwd=ROOT,
            env=child_environment(stage.settings),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """Process ids of the direct children (the trainers)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.pid and fields[0] != "Z":
                found.append(int(entry.parent.name))
        return found

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop_with(self, number: int, seconds: float = DEADLINE_SECONDS) -> int:
        """Send a signal and wait for the end."""
        self.signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        """Kill what is left; its trainers must follow without help."""
        children = self.children()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_SECONDS)
        self._log.close()
        wait_until(lambda: not any(map(is_alive, children)), what=f"{children} die with the worker")


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stage:
    """Everything around the workers, by the parts that the service itself uses."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        folder: Path,
        app: str,
        *,
        splits: Mapping[str, Sequence[Mapping[str, Any]]] = LETTERS,
    ) -> None:
        self.settings = settings
        self.database = database
        self.folder = folder
        self.app = app
        self.queue = JobQueue(settings)
        self.store: ObjectStore = open_store(settings)
        self.workers: list[WorkerUnderTest] = []
        self.sweeps = self.refused_sweeps = 0
        with database.write() as session:
            self.tenant_id = tenants.create_tenant(session, name="acme").id
        self.dataset_id = self._add_dataset(splits)

    # -- rows -----------------------------------------------------------------------------

    def _add_dataset(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
        identity = dataset_rows.new_dataset_id()
        splits = {}
        for name, rows in records.items():
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            key = dataset_key(identity, name)
            self.store.put_bytes(key, data)
            sha256 = hashlib.sha256(data).hexdigest()
            splits[name] = {"key": key, "rows": len(rows), "sha256": sha256}
        with self.database.write() as session:
            dataset_rows.create(
                session,
                tenant_id=self.tenant_id,
                name="letters",
                status=DatasetStatus.READY,
                id=identity,
                task="text-classification",
                rows=sum(map(len, records.values())),
                splits=splits,
            )
        return identity

    def spec(
        self,
        *,
        steps: int = 10,
        adapter_name: str = "letters",
        base_model: str = "minilm",
        dataset_id: str | None = None,
        parent_adapter_id: str | None = None,
        base: Mapping[str, Any] | None = None,
        method: str | Mapping[str, Any] = "lora",
        training: Mapping[str, Any] | None = None,
        **metadata: str,
    ) -> JobSpec:
        return JobSpec.model_validate(
            {
                "dataset_id": dataset_id or self.dataset_id,
                "base_model": base_model,
                "task": "text-classification",
                "adapter_name": adapter_name,
                "parent_adapter_id": parent_adapter_id,
                "base": base or {},
                "method": method,
                "training": {"max_steps": steps, **(training or {})},
                "metadata": metadata,
            }
        )

    def add_job(self, *, send: bool = True, max_attempts: int = 5, **options: Any) -> str:
        """Make a queued job; options are those of ``spec``, and metadata steers the twin."""
        spec = self.spec(**options)
        with self.database.write() as session:
            job = jobs.create(
                session,
                tenant_id=self.tenant_id,
                dataset_id=self.dataset_id,
                base_model=spec.base_model,
                spec=spec.model_dump(mode="json"),
                max_attempts=max_attempts,
                task=spec.task,
                adapter_name=spec.adapter_name,
                metadata=spec.metadata,
            )
        if send:
            assert self.queue.send_training(job.id)
        return job.id

    def add_estimate(self, *, send: bool = True, **options: Any) -> str:
        """Make a queued estimate; options are those of ``spec``."""
        with self.database.write() as session:
            row = estimates.create(
                session,
                tenant_id=self.tenant_id,
                dataset_id=self.dataset_id,
                spec=self.spec(**options).model_dump(mode="json"),
            )
        if send:
            assert self.queue.send_estimate(row.id)
        return row.id

    def estimate(self, estimate_id: str) -> Estimate:
        with self.database.read() as session:
            return estimates.get(session, self.tenant_id, estimate_id)

    def wait_estimate(
        self, estimate_id: str, *wanted: EstimateStatus, sweeping: bool = False
    ) -> Estimate:
        """Wait until an estimate has a status, sweeping like the service does if asked to."""

        def has_it() -> bool:
            if sweeping:
                self._sweep()
            return self.estimate(estimate_id).status in wanted

        wait_until(
            has_it,
            what=lambda: f"{estimate_id}, {self.estimate(estimate_id).status}, is {wanted}",
            seconds=3 * DEADLINE_SECONDS,
        )
        return self.estimate(estimate_id)

    def add_held_job(self, hold: int, *, steps: int = 10, **options: Any) -> str:
        """Make a job that waits after step ``hold`` until ``open_gate``, and traces its steps."""
        return self.add_job(
            steps=steps,
            hold=str(hold),
            gates=str(self.folder),
            trace=str(self.trace),
            **options,
        )

    @property
    def trace(self) -> Path:
        return self.folder / "trace.txt"

    def traced_steps(self) -> list[int]:
        """Every step that any process trained, in order."""
        if not self.trace.exists():
            return []
        return [int(line.split()[1]) for line in self.trace.read_text().splitlines()]

    def wait_traced(self, step: int) -> None:
        """Wait until a step is the last that was trained."""
        wait_until(lambda: self.traced_steps()[-1:] == [step], what=f"step {step} is trained")

    def forget_steps(self) -> None:
        """Begin a new trace."""
        self.trace.unlink()

    def wait_held(self, step: int) -> None:
        """Wait until the twin has done a step and kept its checkpoint's row."""
        wait_until(
            lambda: any(row.step == step for row in self.checkpoints()), what=f"held at {step}"
        )

    def open_gate(self, step: int | str) -> None:
        (self.folder / str(step)).touch()

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return jobs.get(session, self.tenant_id, job_id)

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.request_cancel(session, self.tenant_id, job_id)

    def wait_status(self, job_id: str, *wanted: JobStatus, seconds: float = 30) -> Job:
        wait_until(
            lambda: self.job(job_id).status in wanted,
            what=lambda: f"{self._describe(job_id)} is {wanted}",
            seconds=seconds,
        )
        return self.job(job_id)

    def wait_running_sweeping(self, job_id: str, attempt: int) -> None:
        """Wait until an attempt has the job, sweeping like the service does."""

        def is_running() -> bool:
            self._sweep()
            job = self.job(job_id)
            return (job.status, job.attempt) == (JobStatus.RUNNING, attempt)

        seconds = 2 * DEADLINE_SECONDS  # see _sweep
        wait_until(
            is_running,
            what=lambda: f"{self._describe(job_id)} runs attempt {attempt}",
            seconds=seconds,
        )

    def wait_end(self, job_id: str, seconds: float = 2 * DEADLINE_SECONDS) -> Job:
        """Wait until a job is over, sweeping like the service does (its time: see _sweep)."""

        def is_over() -> bool:
            self._sweep()
            return self.job(job_id).status in TERMINAL

        wait_until(is_over, what=lambda: f"{self._describe(job_id)} ends", seconds=seconds)
        return self.job(job_id)

    def _sweep(self) -> None:
        # A process that is stopped within a transaction holds its rows until the database ends its
        # session (30 s on Postgres); the service sweeps again then too.
        try:
            recovery.sweep(self.database, self.queue, self.settings)
        except Unavailable:
            self.refused_sweeps += 1
        else:
            self.sweeps += 1

    def _describe(self, job_id: str) -> str:
        job = self.job(job_id)
        seen = f"{job.status}, attempt {job.attempt}, leased until {job.lease_until}"
        return f"{job_id} ({seen}; {self.sweeps} sweeps, {self.refused_sweeps} refused)"

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.read() as session:
            return list(events.page(session, self.tenant_id, job_id, limit=1000).items)

    def adapters(self) -> list[Adapter]:
        with self.database.read() as session:
            return list(adapters.list_page(session, self.tenant_id, limit=100).items)

    def checkpoints(self) -> list[Checkpoint]:
        with self.database.read() as session:
            page = jobs.list_page(session, self.tenant_id, limit=100)
            return [
                row
                for job in page.items
                for row in checkpoints.list_newest(session, self.tenant_id, job.id)
            ]

    def digest(self, job_id: str) -> str:
        """Digest of what a succeeded job published; its bytes must be there."""
        (adapter,) = [each for each in self.adapters() if each.job_id == job_id]
        assert self.job(job_id).adapter_id == adapter.id
        assert len(self.store.get_bytes(adapter.key)) == adapter.bytes
        return adapter.digest

    # -- processes ------------------------------------------------------------------------

    def start_worker(
        self, queue: str = "training", *, concurrency: int = 1, pool: str = "threads"
    ) -> WorkerUnderTest:
        name = f"worker{len(self.workers)}"
        return self._start(
            name,
            *("worker", "-P", pool, "-c", str(concurrency), "-Q", queue, "-n", f"{name}@test"),
            *("--without-gossip", "--without-mingle"),
        )

    def start_beat(self) -> WorkerUnderTest:
        return self._start("beat", "beat", "--pidfile=")

    def _start(self, name: str, *arguments: str) -> WorkerUnderTest:
        worker = WorkerUnderTest(self, arguments, self.folder / f"{name}.log")
        self.workers.append(worker)
        return worker

    def trainer_of(self, worker: WorkerUnderTest) -> int:
        """Process id of a worker's trainer child, once there is one."""
        (child,) = wait_until(worker.children, what="a trainer child")
        return int(child)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.queue.close()


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def closing(stage: Stage) -> Iterator[Stage]:
    """Yield a stage, print its logs, and end its processes."""
    try:
        yield stage
    finally:
        stage.close()
        print(stage.logs())  # noqa: T201 pytest shows it when the test failed


@contextmanager
def locked_jobs(stage: Stage) -> Iterator[None]:
    """Keep everybody else from writing jobs, as a database that does not answer would."""
    engine = make_engine(stage.settings.database_url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        yield
    engine.dispose()
