"""From a trained delta to a published adapter: bytes first, then every row in one transaction.

Whoever reads the adapter's row finds the bytes; a process that dies in between leaves an object
that the next attempt, which trains the same delta, finds already there.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from core.db import Database, Session, adapters, datasets, draws, jobs
from core.db.models import Adapter, Job
from core.errors import Unavailable
from core.states import JobStatus
from core.storage import ObjectStore
from worker.deltas import describe_delta
from worker.engine import TrainingResult
from worker.heartbeat import Fenced
from worker.journal import JobKey

_log = logging.getLogger(__name__)

T = TypeVar("T")

_DATABASE_RETRY_SECONDS = 0.5


def publish(
    database: Database,
    store: ObjectStore,
    key: JobKey,
    job: Job,
    result: TrainingResult,
    *,
    data: bytes,
    stored_as: str,
    certificate: dict[str, Any],
    environment: dict[str, Any],
    about_base: Mapping[str, Any] | None = None,
) -> None:
    """Make the adapter and end the job, both or neither.

    Args:
        database: Where to write.
        store: Where the delta was put.
        key: The attempt; a fenced one publishes nothing.
        job: The job as it was when the attempt began.
        result: What was trained.
        data: The delta's file.
        stored_as: Its storage key.
        certificate: That it answers where it is served as it did in training.
        environment: On what it was trained.
        about_base: What the derived base costs and brings, if the job trained on one.

    Raises:
        ValueError: There is no delta to publish.

    ``Fenced`` goes through when another attempt owns the job, or the job is over.
    """
    delta = result.delta
    if delta is None:
        raise ValueError(f"{key.job_id} ended as {result.outcome} and has no delta")
    told = describe_delta(delta, key=stored_as, size_bytes=len(data))
    metrics = dict(result.metrics) | ({} if about_base is None else {"base": dict(about_base)})

    def write() -> None:
        with database.write() as session:
            # Takes the row's lock: nothing below can be written by a stale attempt.
            if not jobs.hold(session, key.job_id, key.attempt):
                raise Fenced(key.job_id)
            adapter = adapters.publish(
                session,
                tenant_id=key.tenant_id,
                name=job.adapter_name or key.job_id,
                **told,
                job_id=key.job_id,
                dataset_id=job.dataset_id,
                parent_adapter_id=job.spec.get("parent_adapter_id"),
                metrics=metrics,
                certificate=certificate,
                metadata_=dict(job.metadata_ or {}),
            )
            if not store.exists(stored_as):
                # an equal adapter was deleted since: now the bytes stay
                store.put_new(stored_as, data)
            _keep_draws(session, adapter, result)
            draws.put_validation(session, key.job_id, key.tenant_id, result.validation_draws)
            jobs.finish(
                session,
                key.job_id,
                key.attempt,
                JobStatus.SUCCEEDED,
                adapter_id=adapter.id,
                metrics=metrics,
                resolved=dict(result.resolved),
                trainable_parameters=result.trainable_parameters,
                base_parameters=result.base_parameters,
                certificate=certificate,
                environment=environment,
            )

    patiently(write)


def _keep_draws(session: Session, adapter: Adapter, result: TrainingResult) -> None:
    """Keep what the test gave beside the adapter, under the digest of the rows that gave it."""
    dataset = datasets.get_for_worker(session, adapter.dataset_id or "")
    split = dataset.splits.get("test") if dataset is not None else None
    if result.delta is None or not split or not result.test_draws:
        return
    draws.put(
        session,
        adapter,
        result.test_draws,
        test_sha256=str(split["sha256"]),
        max_length=result.delta.manifest.max_length,
        deciding=result.resolved.get("metric"),
    )


def patiently(work: Callable[[], T]) -> T:
    """Do a piece of work as often as the database is away.

    There is no limit here: the supervisor kills this process when the lease has passed.

    Args:
        work: One transaction.

    Returns:
        What the work returned.

    Raises:
        Unavailable: Something other than the database is away.
    """
    pause = threading.Event()
    while True:
        try:
            return work()
        except Unavailable as error:
            if error.code != "database_unavailable":
                raise
            _log.warning("database away, tried again: %s", error)
            pause.wait(_DATABASE_RETRY_SECONDS)
