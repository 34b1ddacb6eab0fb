"""Sweeps on the stage of the worker: made, looked at, waited for."""

from typing import Any

from core.db import adapters, sweeps, trials
from core.db.idempotency import digest_request
from core.db.models import Sweep
from core.db.trials import Trial
from core.queue import ADVANCE_TASK
from core.states import SWEEP_ACTIVE
from peft_engine.configs import SweepSpec
from tests.service.worker.stage import Stage, wait_until
from worker import recovery

# Trainers load torch first, and then train up to five jobs, on a machine that is busy.
SECONDS = 400.0


def add_sweep(
    stage: Stage,
    search: dict[str, Any],
    *,
    send: bool = True,
    base_model: str = "tiny",
    training: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    **asked: Any,
) -> str:
    """Make a sweep as the api does."""
    job = {
        "dataset_id": stage.dataset_id,
        "base_model": base_model,
        "task": "text-classification",
        "adapter_name": "letters",
        "training": training or {"epochs": 1, "batch_size": 8},
        "metadata": metadata or {},
    }
    spec = SweepSpec.model_validate({"job": job, "search": search, **asked})
    with stage.database.write() as session:
        sweep, _ = sweeps.create_once(
            session,
            tenant_id=stage.tenant_id,
            dataset_id=stage.dataset_id,
            name="letters",
            spec=spec.model_dump(mode="json"),
            idempotency_key=None,
            request_digest=digest_request(spec.model_dump(mode="json")),
        )
    if send:
        assert stage.queue.send_housekeeping(ADVANCE_TASK, sweep.id)
    return sweep.id


def read(stage: Stage, sweep_id: str) -> tuple[Sweep, list[Trial]]:
    """A sweep and its trials."""
    with stage.database.read() as session:
        return (
            sweeps.get(session, stage.tenant_id, sweep_id),
            trials.list_of(session, stage.tenant_id, sweep_id),
        )


def wait_ended(stage: Stage, sweep_id: str) -> tuple[Sweep, list[Trial]]:
    """Wait until a sweep has ended, recovering what is lost like the service does."""

    def is_over() -> bool:
        recovery.sweep(stage.database, stage.queue, stage.settings)
        return read(stage, sweep_id)[0].status not in SWEEP_ACTIVE

    wait_until(is_over, what=lambda: str(read(stage, sweep_id)[1]), seconds=SECONDS)
    return read(stage, sweep_id)


def names_of(stage: Stage) -> dict[str, str]:
    """``name@version`` of what each job published."""
    with stage.database.read() as session:
        rows = adapters.list_page(session, stage.tenant_id, limit=100).items
    return {str(row.job_id): f"{row.name}@{row.version}" for row in rows}
