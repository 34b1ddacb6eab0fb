"""What a running attempt tells the database: phase, progress, events, metrics, checkpoints.

The training thread only puts entries on a list; a thread of its own writes them, in order, many
in one transaction, each fenced by the attempt. So a step never waits for a database, and a
database that is away for a moment costs nothing: entries wait, and the supervisor decides by the
lease how long that may last. Knows no torch and no storage.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from core.db import Database, Session, events, jobs
from core.errors import Unavailable
from core.states import Phase
from worker.engine import TrainingEvent
from worker.heartbeat import Fenced

_log = logging.getLogger(__name__)

# Pause between two writes: short enough for a progress bar, long enough to batch small steps.
_FLUSH_SECONDS = 0.25
# While the database is away.
_RETRY_SECONDS = 1.0
# A progress event (the row is updated at every write): when the percent changes, or so seldom.
_PROGRESS_EVENT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class JobKey:
    """Names an attempt in every row that it writes."""

    job_id: str
    tenant_id: str
    attempt: int


@dataclass
class _Batch:
    """What waits to be written."""

    values: dict[str, Any] = field(default_factory=dict)
    writes: list[Callable[[Session], None]] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)
    entries: int = 0

    def __bool__(self) -> bool:
        return self.entries > 0


class Journal:
    """Writes one attempt's story; used as a context manager around the training."""

    def __init__(self, database: Database, key: JobKey, *, has_first_step: bool) -> None:
        """Prepare a journal; entering the context starts its thread.

        Args:
            database: Where to write.
            key: Which attempt speaks.
            has_first_step: True when an earlier attempt has noted the time of the first step.
        """
        self._database = database
        self._key = key
        self._has_first_step = has_first_step
        self._changed = threading.Condition()
        self._batch = _Batch()
        self._taken = 0
        self._written = 0
        self._fenced = False
        self._broken: Exception | None = None
        self._hurry = False
        self._stop = threading.Event()
        self._told_percent = -1
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._write_batches, name="journal", daemon=True)

    def __enter__(self) -> "Journal":
        """Start writing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop writing; what was not flushed is dropped."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def check(self) -> None:
        """Stop the training thread when nothing can be written any more.

        Raises:
            Fenced: Another attempt owns the job.
            RuntimeError: The journal's thread met a fault of ours.
        """
        if self._fenced:
            raise Fenced(self._key.job_id)
        if self._broken is not None:
            raise RuntimeError("the journal cannot be written") from self._broken

    def emit(self, event: TrainingEvent) -> None:
        """Take an event of the engine."""
        handler = {
            "phase": self._take_phase,
            "progress": self._take_progress,
            "metric": self._take_metric,
            "log": self._take_log,
            "resolved": self._take_resolved,
        }[event.kind]
        handler(event.data)

    def phase(self, phase: Phase) -> None:
        """Say what the attempt is doing."""
        self._add(
            values={"phase": phase},
            write=lambda session: self._event(session, "status", phase.value, {"phase": phase}),
        )

    def log(self, message: str, *, level: str = "info") -> None:
        """Add a line that the job's owner reads."""
        self._add(write=lambda session: self._event(session, "log", message, {}, level))

    def add(
        self, write: Callable[[Session], None], *, after: Callable[[], None] | None = None
    ) -> None:
        """Add any other write to the next transaction.

        Args:
            write: Called in the fenced transaction; twice, when the first try failed to commit.
            after: Called by the journal's thread once it is committed.
        """
        self._add(write=write, after=after)

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything said so far is written.

        Args:
            timeout_seconds: Longest wait; None waits as long as the database is away.

        Returns:
            False when the time was over first. Raises like ``check``.
        """
        with self._changed:
            goal = self._taken + self._batch.entries
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._written >= goal or self._fenced or self._broken is not None,
                timeout=timeout_seconds,
            )
            self._hurry = False
            written = self._written >= goal
        if not written:
            self.check()
        return written

    def _take_phase(self, data: Mapping[str, Any]) -> None:
        self.phase(Phase(data["phase"]))

    def _take_progress(self, data: Mapping[str, Any]) -> None:
        progress = dict(data)
        step, total = int(progress.get("step", 0)), progress.get("total_steps") or 0
        progress.setdefault("percent", round(100.0 * step / total, 2) if total else None)
        values: dict[str, Any] = {"progress": progress}
        if step >= 1 and not self._has_first_step:
            self._has_first_step = True
            values["first_step_at"] = datetime.now(UTC)
        percent = int(progress["percent"] or 0)
        now = time.monotonic()
        due = percent != self._told_percent or now - self._told_at > _PROGRESS_EVENT_SECONDS
        if (due and now - self._told_at >= _FLUSH_SECONDS) or step == total:
            self._told_percent, self._told_at = percent, now
            message = f"step {step} of {total}"
            self._add(values, lambda session: self._event(session, "progress", message, progress))
        else:
            self._add(values)

    def _take_metric(self, data: Mapping[str, Any]) -> None:
        name, step, value = str(data["name"]), int(data["step"]), float(data["value"])

        def write(session: Session) -> None:
            events.put_metric(
                session,
                job_id=self._key.job_id,
                tenant_id=self._key.tenant_id,
                attempt=self._key.attempt,
                name=name,
                step=step,
                value=value,
            )

        self._add(write=write)

    def _take_log(self, data: Mapping[str, Any]) -> None:
        self.log(str(data["message"]), level=str(data.get("level", "info")))

    def _take_resolved(self, data: Mapping[str, Any]) -> None:
        names = ("resolved", "trainable_parameters", "base_parameters")
        self._add(values={name: data[name] for name in names if name in data})

    def _add(
        self,
        values: Mapping[str, Any] | None = None,
        write: Callable[[Session], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        with self._changed:
            batch = self._batch
            batch.values.update(values or {})
            if write is not None:
                batch.writes.append(write)
            if after is not None:
                batch.after.append(after)
            batch.entries += 1
            self._changed.notify_all()

    def _event(
        self,
        session: Session,
        event: str,
        message: str,
        data: Mapping[str, Any],
        level: str = "info",
    ) -> None:
        events.append(
            session,
            job_id=self._key.job_id,
            tenant_id=self._key.tenant_id,
            attempt=self._key.attempt,
            event=event,
            message=message,
            level=level,
            data=data,
        )

    def _write_batches(self) -> None:
        try:
            while (batch := self._take_batch()) is not None:
                if not self._write_patiently(batch):
                    return
                for follow_up in batch.after:
                    follow_up()
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._hurry or self._stop.is_set(), _FLUSH_SECONDS
                    )
        except Exception as error:  # noqa: BLE001 edge of a thread; ``check`` raises it
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _take_batch(self) -> _Batch | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._batch) or self._stop.is_set())
            if self._stop.is_set():
                return None
            batch, self._batch = self._batch, _Batch()
            self._taken += batch.entries
            return batch

    def _write_patiently(self, batch: _Batch) -> bool:
        """Write a batch, however long the database is away; False when it is fenced or stopped."""
        while True:
            try:
                written = self._write(batch)
            except Unavailable as error:
                _log.warning("%s: journal waits: %s", self._key.job_id, error)
                if self._stop.wait(_RETRY_SECONDS):
                    return False
                continue
            with self._changed:
                self._fenced = not written
                self._written += batch.entries if written else 0
                self._changed.notify_all()
            return written

    def _write(self, batch: _Batch) -> bool:
        with self._database.write() as session:
            # First, because it takes the row's lock: what follows is fenced by it.
            if not jobs.hold(session, self._key.job_id, self._key.attempt):
                return False
            if batch.values:
                jobs.update_fenced(session, self._key.job_id, self._key.attempt, **batch.values)
            for write in batch.writes:
                write(session)
        return True
