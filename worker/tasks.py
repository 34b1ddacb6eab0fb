"""The Celery tasks: names, limits, and one call each into the worker process."""

from celery import Celery

from worker.process import WorkerProcess


def register_tasks(app: Celery, worker: WorkerProcess) -> None:
    """Register the tasks that ``core.queue`` sends.

    Args:
        app: The Celery application.
        worker: Does the work.
    """

    @app.task(name="tunery.train")  # type: ignore[untyped-decorator]
    def train(job_id: str) -> None:
        worker.train(job_id)

    @app.task(name="tunery.validate_dataset")  # type: ignore[untyped-decorator]
    def validate_dataset(dataset_id: str) -> None:
        worker.validate_dataset(dataset_id)

    @app.task(name="tunery.sweep")  # type: ignore[untyped-decorator]
    def sweep() -> None:
        worker.sweep()

    @app.task(name="tunery.remove_orphans")  # type: ignore[untyped-decorator]
    def remove_orphans() -> None:
        worker.remove_orphans()
