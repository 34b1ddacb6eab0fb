"""One Celery worker process: what its tasks share, and what happens at its start and end.

Nothing opens before it is needed: the same program serves the queue ``training`` (with trainer
children) and the queue ``housekeeping`` (without).
"""

import logging
import os
import socket
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from core.db import Database, open_database, webhooks
from core.queue import JobQueue
from core.settings import Settings, child_environment
from core.storage import ObjectStore, open_store
from worker import recovery
from worker.attempts import JobAttempts
from worker.checkpoints import delete_abandoned
from worker.estimate_rows import EstimateRows
from worker.expired_uploads import end_expired_uploads
from worker.measuring import Measurer
from worker.one_by_one import OneByOne
from worker.orphans import remove_orphans
from worker.sweeps.advancing import advance
from worker.trainer_slot import TRAINER_COMMAND, TrainerSlot, device_environments
from worker.training import Supervisor
from worker.validation import DatasetValidator
from worker.watching import Limits
from worker.webhooks import WebhookThread

_log = logging.getLogger(__name__)


class WorkerProcess:
    """The parts of one worker process, made on first use."""

    def __init__(
        self, settings: Settings, *, trainer_command: Sequence[str] = TRAINER_COMMAND
    ) -> None:
        """Prepare; nothing is opened or started.

        Args:
            settings: The process's settings.
            trainer_command: Program and arguments of a trainer child.
        """
        self._settings = settings
        self._trainer_command = trainer_command
        self._draining = threading.Event()
        self._validations = OneByOne(self._validate, stopping=self._draining)
        self._webhooks = WebhookThread(
            lambda: self._database,
            lease_seconds=settings.lease_seconds,
            may_be_private=settings.webhooks_may_be_private,
            stopping=self._draining,
        )
        self._slots: list[TrainerSlot] = []
        self._trainers: tuple[Supervisor, Measurer] | None = None

    @cached_property
    def _database(self) -> Database:
        return open_database(self._settings)

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._settings)

    @cached_property
    def _queue(self) -> JobQueue:
        return JobQueue(self._settings)

    @cached_property
    def _alive_file(self) -> Path:
        return self._settings.data_dir / "run" / f"worker-{os.getpid()}.alive"

    def start_trainers(self, count: int) -> None:
        """Start the trainer children, so that they are warm when the first job comes.

        Args:
            count: Children, each with the devices of one job.
        """
        settings = self._settings
        environments = device_environments(
            child_environment(settings), count, settings.threads, per_job=settings.devices_per_job
        )
        self._slots = [
            TrainerSlot(f"slot-{index}", self._trainer_command, environment)
            for index, environment in enumerate(environments)
        ]
        for slot in self._slots:
            slot.start()
        owner = f"{socket.gethostname()}/{os.getpid()}"
        limits = Limits(
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            cancel_grace_seconds=settings.cancel_grace_seconds,
            silence_seconds=settings.silence_seconds,
            stall_seconds=settings.stall_seconds,
        )
        supervisor = Supervisor(
            attempts=JobAttempts(
                self._database,
                self._store,
                owner=owner,
                lease_seconds=settings.lease_seconds,
                outage_seconds=settings.resend_after_seconds,
            ),
            sender=self._queue,
            slots=self._slots,
            draining=self._draining,
            limits=limits,
            jobs_together=settings.jobs_together,
        )
        measurer = Measurer(
            rows=EstimateRows(
                self._database,
                owner=owner,
                lease_seconds=settings.lease_seconds,
                outage_seconds=settings.resend_after_seconds,
            ),
            send=self._queue.send_estimate,
            slot=supervisor.slot,
            draining=self._draining,
            limits=limits,
        )
        self._trainers = supervisor, measurer

    def train(self, job_id: str) -> None:
        """Body of the task ``tunery.train``.

        Args:
            job_id: From the message.
        """
        supervisor, _ = self._require_trainers()
        supervisor.train(job_id)

    def estimate(self, estimate_id: str) -> None:
        """Body of the task ``tunery.estimate``.

        Args:
            estimate_id: From the message.
        """
        _, measurer = self._require_trainers()
        measurer.measure(estimate_id)

    def _require_trainers(self) -> tuple[Supervisor, Measurer]:
        """What runs jobs and estimates.

        Raises:
            RuntimeError: This process does not serve the queue of training jobs.
        """
        if self._trainers is None:
            raise RuntimeError("this worker has no trainers: it does not serve the queue training")
        return self._trainers

    def validate_dataset(self, dataset_id: str) -> None:
        """Body of the task ``tunery.validate_dataset``."""
        self._validations.run(dataset_id)

    def _validate(self, dataset_id: str) -> None:
        DatasetValidator(self._settings, self._database, self._store, self._queue).validate(
            dataset_id
        )

    def advance_sweep(self, sweep_id: str) -> None:
        """Body of the task ``tunery.advance_sweep``."""
        advance(self._database, self._queue, sweep_id, max_attempts=self._settings.max_attempts)

    def sweep(self) -> None:
        """Body of the task ``tunery.sweep``."""
        recovery.sweep(self._database, self._queue, self._settings)
        with self._database.read() as session:
            is_due = webhooks.is_due(session)
        if is_due:
            self._webhooks.wake()
        delete_abandoned(self._database, self._store)
        end_expired_uploads(self._database, self._store)

    def deliver_webhooks(self, object_id: str) -> None:
        """Body of the task ``tunery.deliver_webhooks``.

        Args:
            object_id: What has ended, for the log; all that is due is sent.
        """
        _log.info("webhooks are looked for after the end of %s", object_id)
        self._webhooks.wake()

    def remove_orphans(self) -> None:
        """Body of the task ``tunery.remove_orphans``."""
        remove_orphans(self._database, self._store)

    def drain(self) -> None:
        """Make running jobs keep a checkpoint and go back to the queue; called from a signal."""
        self._draining.set()

    def close(self) -> None:
        """End the trainer children, and what sends webhooks."""
        self._webhooks.close()
        for slot in self._slots:
            slot.close()
        self._alive_file.unlink(missing_ok=True)

    def touch_alive_file(self) -> None:
        """Say to whoever started this process that its event loop turns.

        A consumer that hangs in the network keeps its process alive; only this file grows old.
        """
        path = self._alive_file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            _log.warning("cannot touch %s: %s", path, error)
