"""Batches: made, read and cancelled in ``records``, worked on in ``leases``.

    with database.write() as session:
        batch, is_new = batches.create_once(session, tenant_id=…, …)

    with database.write() as session:                 # a process of batches
        claim = batches.claim_next(session, owner=…, lease_seconds=…)

No message is sent: whoever has room looks for a batch that nobody has.
"""

from core.db.batches.leases import (
    Beat,
    Claim,
    Fenced,
    beat,
    claim_next,
    finish,
    keep_part,
    keeps_waiting,
    list_parts,
    move,
    release,
)
from core.db.batches.records import create_once, get, list_page, request_cancel

__all__ = [
    "Beat",
    "Claim",
    "Fenced",
    "beat",
    "claim_next",
    "create_once",
    "finish",
    "get",
    "keep_part",
    "keeps_waiting",
    "list_page",
    "list_parts",
    "move",
    "release",
    "request_cancel",
]
