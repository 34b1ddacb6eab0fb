"""The Celery application of the workers.

    OPTIONS="--without-gossip --without-mingle"
    celery -A worker.celery_app worker -P threads -c 1 -Q training $OPTIONS
    celery -A worker.celery_app worker -P threads -c 2 -Q housekeeping $OPTIONS
    celery -A worker.celery_app beat

Threads, never prefork: the task only supervises, and a signal reaches it. One thread per device.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from celery import Celery, signals
from celery.concurrency.thread import TaskPool as ThreadPool

from core.logs import configure_logging
from core.queue import HOUSEKEEPING, ORPHANS_TASK, SWEEP_TASK, TRAINING, make_celery
from core.settings import Settings, load_settings
from worker.process import WorkerProcess
from worker.tasks import register_tasks
from worker.trainer_slot import TRAINER_COMMAND

# Looks at every object of the store; what it removes has been lying there for a day already.
_ORPHANS_SECONDS = 3600.0

# They say of each message that it was due, came, and was done.
_ROUTINE_LOGGERS = ("celery.app.trace", "celery.beat", "celery.worker.strategy")


def create_app(settings: Settings, *, trainer_command: Sequence[str] = TRAINER_COMMAND) -> Celery:
    """Make the application with its tasks, schedule and signal handlers.

    Args:
        settings: The process's settings.
        trainer_command: Program and arguments of a trainer child.

    Returns:
        The application; nothing has connected yet.
    """
    app = make_celery(settings)
    worker = WorkerProcess(settings, trainer_command=trainer_command)
    register_tasks(app, worker)
    app.conf.beat_scheduler = "celery.beat:Scheduler"  # in memory: the default writes a pickle file
    app.conf.beat_schedule = {
        "sweep": {
            "task": SWEEP_TASK,
            "schedule": settings.sweep_seconds,
            # A broker without workers must not gather sweeps: one is as good as many.
            "options": {"queue": HOUSEKEEPING, "expires": settings.sweep_seconds * 2},
        },
        "orphans": {
            "task": ORPHANS_TASK,
            "schedule": _ORPHANS_SECONDS,
            "options": {"queue": HOUSEKEEPING, "expires": _ORPHANS_SECONDS},
        },
    }
    _connect_signals(settings, worker)
    return app


def _connect_signals(settings: Settings, worker: WorkerProcess) -> None:
    """Tie the process's life to the worker's parts; ``weak=False`` keeps the closures alive."""

    @signals.celeryd_after_setup.connect(weak=False)  # type: ignore[untyped-decorator]
    def start(instance: Any, **_: object) -> None:
        if TRAINING not in instance.app.amqp.queues.consume_from:
            return
        if not issubclass(instance.pool_cls, ThreadPool):
            # A forked task would not see the trainers, nor the signal to drain. SystemExit,
            # because Celery logs any other exception of a handler and goes on.
            raise SystemExit("the queue training needs the threads pool: celery worker -P threads")
        worker.start_trainers(instance.concurrency)

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: object) -> None:
        worker.drain()

    @signals.worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def close(**_: object) -> None:
        worker.close()

    @signals.heartbeat_sent.connect(weak=False)  # type: ignore[untyped-decorator]
    def touch(**_: object) -> None:
        worker.touch_alive_file()

    @signals.setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def log(**_: object) -> None:
        configure_logging(settings)
        leave_routine_out()


def leave_routine_out() -> None:
    """Keep sweeps that go well out of the log: three lines every few seconds hide all others."""
    for name in _ROUTINE_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or SWEEP_TASK not in record.getMessage()


@functools.cache
def _default_app() -> Celery:
    return create_app(load_settings())


def __getattr__(name: str) -> Celery:
    """Make ``app`` when the Celery command asks for it, so that importing does nothing.

    Raises:
        AttributeError: Any other name.
    """
    if name == "app":
        return _default_app()
    raise AttributeError(name)
