"""Estimates: made and read in ``records``, worked on in ``leases``.

    with database.write() as session:
        estimate = estimates.create(session, tenant_id=…, dataset_id=…, spec=…)
    queue.send_estimate(estimate.id)    # after the commit; a lost message is sent again

An estimate is claimed, beaten for and fenced as a job is, and has no story.
"""

from core.db.estimates.leases import (
    MOST_LOSSES,
    Claim,
    beat,
    claim,
    finish,
    mark_unsent,
    read_wish,
    release,
    sweep,
)
from core.db.estimates.records import (
    MOST_WAITING,
    cancel_of_job,
    create,
    find_of_jobs,
    get,
    get_for_worker,
    list_page,
    queue_positions,
    request_cancel,
)

__all__ = [
    "MOST_LOSSES",
    "MOST_WAITING",
    "Claim",
    "beat",
    "cancel_of_job",
    "claim",
    "create",
    "find_of_jobs",
    "finish",
    "get",
    "get_for_worker",
    "list_page",
    "mark_unsent",
    "queue_positions",
    "read_wish",
    "release",
    "request_cancel",
    "sweep",
]
