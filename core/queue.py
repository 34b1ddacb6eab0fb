"""Messages to workers: a hint that a row waits, never the truth.

A message is one id. It is sent after the commit; when the broker is down or loses it, the sweep
sends another. There is no result backend: with one, sending to a broker that is down takes 19
seconds and raises.
"""

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from core.settings import Settings

TRAINING = "training"
HOUSEKEEPING = "housekeeping"

TRAIN_TASK = "tunery.train"
ESTIMATE_TASK = "tunery.estimate"
VALIDATE_TASK = "tunery.validate_dataset"
SWEEP_TASK = "tunery.sweep"
ORPHANS_TASK = "tunery.remove_orphans"
ADVANCE_TASK = "tunery.advance_sweep"
DELIVER_TASK = "tunery.deliver_webhooks"

# longer than any job: recovery stands on leases, and a message that comes again while its job runs
# is a duplicate
_VISIBILITY_SECONDS = 86_400
_PRIORITY_STEPS = (0, 3, 6, 9)

# somebody waits for the answer of a request that sends; a consumer may listen for much longer
_SENDER_TIMEOUTS = {"socket_timeout": 2, "socket_connect_timeout": 2}


def make_celery(settings: Settings) -> Celery:
    """Make a Celery application with the settings that survived every fault that was tried.

    Args:
        settings: The process's settings; without a ``broker_url`` every send fails.

    Returns:
        The application, without tasks.
    """
    app = Celery("tunery", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url or "redis://127.0.0.1:1/0",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # True loses or strands messages on Redis
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry_policy={
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        # never add retry_on_timeout: its retry blocks the consumer for ever after a connection
        # reset
        broker_transport_options={
            "visibility_timeout": _VISIBILITY_SECONDS,
            "queue_order_strategy": "priority",
            "priority_steps": list(_PRIORITY_STEPS),
            "sep": ":",
            "health_check_interval": 10,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        task_queues=[_queue(TRAINING), _queue(HOUSEKEEPING)],
        task_default_queue=HOUSEKEEPING,
        task_routes={name: {"queue": TRAINING} for name in (TRAIN_TASK, ESTIMATE_TASK)},
        task_serializer="json",
        accept_content=["json"],
        worker_hijack_root_logger=False,
        enable_utc=True,
        timezone="UTC",
    )
    return app


def _queue(name: str) -> Queue:
    return Queue(name)  # type: ignore[no-untyped-call]  # kombu has no types here


class JobQueue:
    """The sending side; safe to share by threads."""

    def __init__(self, settings: Settings) -> None:
        """Make the sender; nothing connects yet.

        Args:
            settings: The process's settings.
        """
        self._has_broker = settings.broker_url is not None
        self._app = make_celery(settings)
        self._app.conf.broker_transport_options |= _SENDER_TIMEOUTS

    def send_training(self, job_id: str, *, priority: int = 0) -> bool:
        """Tell the training workers of a queued job.

        Args:
            job_id: The job.
            priority: 0 to 9; lower runs sooner.

        Returns:
            False when the broker is down: the row stays queued and the sweep sends it.
        """
        return self._send(TRAIN_TASK, job_id, queue=TRAINING, priority=priority)

    def send_estimate(self, estimate_id: str) -> bool:
        """Tell the training workers of a queued estimate; it waits its turn among jobs.

        Args:
            estimate_id: The estimate.

        Returns:
            False when the broker is down: the row stays queued and the sweep sends it.
        """
        return self._send(ESTIMATE_TASK, estimate_id, queue=TRAINING, priority=0)

    def send_housekeeping(self, task: str, id: str) -> bool:
        """Tell the housekeeping workers of work.

        Args:
            task: Full name of the task, such as ``tunery.validate_dataset``.
            id: What to work on.

        Returns:
            False when the broker is down.
        """
        return self._send(task, id, queue=HOUSEKEEPING, priority=0)

    def send_deliveries(self, object_id: str) -> bool:
        """Tell the housekeeping workers that webhooks may be due.

        Args:
            object_id: What has ended, for the log; whoever sends looks for all that is due.

        Returns:
            False when the broker is down: the sweep finds them.
        """
        return self.send_housekeeping(DELIVER_TASK, object_id)

    def ping(self) -> bool:
        """Ask the broker for a sign of life.

        Returns:
            False when it does not answer.
        """
        if not self._has_broker:
            return False
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(
                    max_retries=1, interval_start=0, interval_step=0, timeout=2
                )
                return bool(connection.default_channel.client.ping())
        except (OperationalError, OSError):
            return False

    def close(self) -> None:
        """Close the connections."""
        self._app.close()

    def _send(self, task: str, argument: str, *, queue: str, priority: int) -> bool:
        if not self._has_broker:
            return False
        try:
            self._app.send_task(
                task, args=[argument], queue=queue, priority=max(0, min(priority, 9))
            )
        except (OperationalError, OSError):
            return False
        return True
