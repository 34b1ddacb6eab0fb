"""The Celery tasks: names, limits, and one call each into the worker process."""

from celery import Celery

from core.queue import (
    ADVANCE_TASK,
    DELIVER_TASK,
    ESTIMATE_TASK,
    ORPHANS_TASK,
    SWEEP_TASK,
    TRAIN_TASK,
    VALIDATE_TASK,
)
from worker.process import WorkerProcess


def register_tasks(app: Celery, worker: WorkerProcess) -> None:
    """Register the tasks that ``core.queue`` sends.

    Args:
        app: The Celery application.
        worker: Does the work.
    """

    @app.task(name=TRAIN_TASK)  # type: ignore[untyped-decorator]
    def train(job_id: str) -> None:
        worker.train(job_id)

    @app.task(name=ESTIMATE_TASK)  # type: ignore[untyped-decorator]
    def estimate(estimate_id: str) -> None:
        worker.estimate(estimate_id)

    @app.task(name=VALIDATE_TASK)  # type: ignore[untyped-decorator]
    def validate_dataset(dataset_id: str) -> None:
        worker.validate_dataset(dataset_id)

    @app.task(name=ADVANCE_TASK)  # type: ignore[untyped-decorator]
    def advance_sweep(sweep_id: str) -> None:
        worker.advance_sweep(sweep_id)

    @app.task(name=SWEEP_TASK)  # type: ignore[untyped-decorator]
    def sweep() -> None:
        worker.sweep()

    @app.task(name=ORPHANS_TASK)  # type: ignore[untyped-decorator]
    def remove_orphans() -> None:
        worker.remove_orphans()

    @app.task(name=DELIVER_TASK)  # type: ignore[untyped-decorator]
    def deliver_webhooks(object_id: str) -> None:
        worker.deliver_webhooks(object_id)
