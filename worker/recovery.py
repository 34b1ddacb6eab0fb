"""The sweep: what was lost between database and broker is found in the database and sent again.

Covers a worker that died with its lease, a message that the broker lost, and an enqueue while the
broker was down. Any process may run it at any time: each row is given out once.
"""

import logging

from core.db import Database, datasets, estimates, jobs, nodes, sweeps, webhooks
from core.queue import ADVANCE_TASK, VALIDATE_TASK, JobQueue
from core.settings import Settings

_log = logging.getLogger(__name__)

# An inference process says every few seconds that it lives; one that was killed leaves its row.
_SILENT_SECONDS = 3600.0


def sweep(database: Database, queue: JobQueue, settings: Settings) -> None:
    """Send what nobody works on.

    Args:
        database: The truth.
        queue: The hint.
        settings: How long a message may be under way.
    """
    with database.write() as session:
        waiting = jobs.sweep(session, resend_after_seconds=settings.resend_after_seconds)
        estimate_ids = estimates.sweep(session, resend_after_seconds=settings.resend_after_seconds)
        dataset_ids = datasets.sweep(session, resend_after_seconds=settings.resend_after_seconds)
        sweep_ids = sweeps.find_due(session, resend_after_seconds=settings.resend_after_seconds)
        nodes.forget_silent(session, after_seconds=_SILENT_SECONDS)
        webhooks.forget_old(session)
    unsent = [
        job_id
        for job_id, priority in waiting.items()
        if not queue.send_training(job_id, priority=priority)
    ]
    if waiting:
        _log.info("sent again: %d jobs, %d not for want of a broker", len(waiting), len(unsent))
    if unsent:
        with database.write() as session:
            jobs.mark_unsent(session, unsent)
    not_measured = [own for own in estimate_ids if not queue.send_estimate(own)]
    if estimate_ids:
        _log.info("sent again: %d estimates", len(estimate_ids))
    if not_measured:
        with database.write() as session:
            estimates.mark_unsent(session, not_measured)
    for dataset_id in dataset_ids:
        _log.info("validation of %s sent again", dataset_id)
        queue.send_housekeeping(VALIDATE_TASK, dataset_id)
    for sweep_id in sweep_ids:
        queue.send_housekeeping(ADVANCE_TASK, sweep_id)
