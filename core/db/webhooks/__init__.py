"""Webhooks: where tenants want to be told, what happened, and what became of telling it.

    with database.write() as session:                  # that ends a job or a batch
        …
        webhooks.announce(session, tenant_id=…, type=…, object_id=…)
    queue.send_deliveries(object_id)    # after the commit; a lost message is found by the sweep

    with database.write() as session:                  # worker
        claims = webhooks.claim(session, …)

Whoever writes several rows takes the endpoint's before its deliveries', so that no two wait for
each other; a claim waits for nobody.
"""

from core.db.webhooks.claims import (
    RETRY_PAUSES_SECONDS,
    Claim,
    claim,
    is_due,
    note_delivered,
    note_failed,
)
from core.db.webhooks.deliveries import (
    count_pending,
    count_totals,
    forget_old,
    list_deliveries,
    resend,
)
from core.db.webhooks.endpoints import (
    MAX_ENDPOINTS,
    create,
    delete,
    get,
    list_page,
    rotate_secret,
    update,
)
from core.db.webhooks.events import announce

__all__ = [
    "MAX_ENDPOINTS",
    "RETRY_PAUSES_SECONDS",
    "Claim",
    "announce",
    "claim",
    "count_pending",
    "count_totals",
    "create",
    "delete",
    "forget_old",
    "get",
    "is_due",
    "list_deliveries",
    "list_page",
    "note_delivered",
    "note_failed",
    "resend",
    "rotate_secret",
    "update",
]
