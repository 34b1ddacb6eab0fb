"""Jobs: made and read in ``records``, wished about in ``wishes``, worked on in ``leases``.

    with database.write() as session:
        job, is_new = jobs.create_once(session, tenant_id=…, …)
    queue.send_training(job.id)         # after the commit; a lost message is sent again

    with database.write() as session:                 # worker
        claim = jobs.claim(session, job_id, owner=…, lease_seconds=…)

Every change of status writes an event in the same transaction.
"""

from core.db.jobs.leases import (
    Beat,
    Claim,
    beat,
    claim,
    find_beside,
    finish,
    hold,
    read_wish,
    release,
    update_fenced,
)
from core.db.jobs.records import (
    create,
    create_once,
    get,
    get_for_worker,
    list_page,
    newest_spec,
    queue_position,
    queue_positions,
)
from core.db.jobs.sweeping import mark_unsent, sweep
from core.db.jobs.wishes import (
    release_waiting,
    request_cancel,
    request_pause,
    resume,
    retry,
    start,
)

__all__ = [
    "Beat",
    "Claim",
    "beat",
    "claim",
    "create",
    "create_once",
    "find_beside",
    "finish",
    "get",
    "get_for_worker",
    "hold",
    "list_page",
    "mark_unsent",
    "newest_spec",
    "queue_position",
    "queue_positions",
    "read_wish",
    "release",
    "release_waiting",
    "request_cancel",
    "request_pause",
    "resume",
    "retry",
    "start",
    "sweep",
    "update_fenced",
]
