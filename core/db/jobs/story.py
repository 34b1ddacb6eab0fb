"""What a change of a job's status leaves in its events, and its end in webhooks.

Every path that ends a job comes through here, in the transaction that ends it.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from core.db import events, webhooks
from core.states import TERMINAL, JobStatus, WebhookEventType

_WEBHOOKS = {
    JobStatus.SUCCEEDED: WebhookEventType.JOB_SUCCEEDED,
    JobStatus.FAILED: WebhookEventType.JOB_FAILED,
    JobStatus.CANCELLED: WebhookEventType.JOB_CANCELLED,
}


def tell_status(
    session: Session,
    *,
    job_id: str,
    tenant_id: str,
    attempt: int,
    status: JobStatus,
    reason: str | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    """Write the event of a new status, and for the last one the event that ends the story.

    The last one is announced to the tenant's webhook endpoints too.

    Args:
        session: The session that changed the status.
        job_id: Whose status.
        tenant_id: The job's tenant.
        attempt: The job's attempt.
        status: The new status.
        reason: Why, if that is not plain.
        error: The job's error, when it failed.
    """
    data: dict[str, Any] = {"status": status.value, "attempt": attempt}
    if reason is not None:
        data["reason"] = reason
    if error is not None:
        data["error"] = dict(error)
    level = "error" if status is JobStatus.FAILED else "info"
    message = f"{status.value}: {reason}" if reason else status.value
    if error is not None:
        message = f"{status.value}: {error.get('message', error.get('code'))}"
    names = ["status"]
    if status in TERMINAL:
        names.append("error" if status is JobStatus.FAILED else "complete")
    for name in names:
        events.append(
            session,
            job_id=job_id,
            tenant_id=tenant_id,
            attempt=attempt,
            event=name,
            level=level,
            message=message,
            data=data,
        )
    if status in TERMINAL:
        webhooks.announce(session, tenant_id=tenant_id, type=_WEBHOOKS[status], object_id=job_id)
