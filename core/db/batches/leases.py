"""What a process of batches does with one: claim it, keep it, write to it, let it go, end it.

As with jobs, a claim raises ``attempt``, and every later write names it: a process that was thought
dead finds itself *fenced* and cannot write. ``kept`` counts the requests, from the first one on,
whose answers lie in parts; a part and the count move in one transaction, so that each request is
answered in exactly one part however often a process is killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, webhooks
from core.db.locks import lock_name
from core.db.models import Batch, BatchPart, File
from core.states import BATCH_ENDED, BATCH_TRANSITIONS, BatchStatus, WebhookEventType


class Fenced(Exception):
    """The batch has gone to another attempt, or has ended: stop, and write nothing more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write to a batch until the lease ends.

    Attributes:
        batch_id: The batch.
        tenant_id: Its owner.
        attempt: The number that fences; 1 for the first.
        losses: Attempts since the last part was kept that were lost.
        endpoint: Path that every request goes to.
        input_key: Where its file lies in storage.
        is_checked: Whether its file has been found good, so that ``requests`` is known.
        requests: How many there are.
        kept: How many of them, from the first on, have their answer.
    """

    batch_id: str
    tenant_id: str
    attempt: int
    losses: int
    endpoint: str
    input_key: str
    is_checked: bool
    requests: int
    kept: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat.

    Attributes:
        status: The batch's status.
        is_late: Whether its window is over.
    """

    status: BatchStatus
    is_late: bool


def claim_next(session: Session, *, owner: str, lease_seconds: float) -> Claim | None:
    """Take the batch whose turn it is.

    It is the oldest of the tenant that has fewest running; of equals, of the one whose batches have
    waited for longest since one was let go.

    Args:
        session: A writing session.
        owner: Who claims, for people to read.
        lease_seconds: For how long, unless renewed by ``beat``.

    Returns:
        The claim; None when no batch is waiting.
    """
    lock_name(session, "batches/claim")
    turns = _turns()
    query = sa.select(Batch, File.key).join(File, File.id == Batch.input_file_id)
    query = query.join(turns, turns.c.tenant_id == Batch.tenant_id).where(*_waits())
    since = sa.func.coalesce(turns.c.let_go_at, Batch.created_at)
    query = query.order_by(turns.c.running, since, Batch.id).limit(1).with_for_update(of=Batch)
    found = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if found is None:
        return None
    batch, input_key = found
    # what ends in order takes it back; a part that is kept forgets all of them
    batch.losses += 0 if batch.attempt == 0 else 1
    batch.attempt += 1
    batch.owner = owner
    batch.lease_until = clock.later(lease_seconds)
    session.flush()
    return Claim(
        batch_id=batch.id,
        tenant_id=batch.tenant_id,
        attempt=batch.attempt,
        losses=batch.losses,
        endpoint=batch.endpoint,
        input_key=input_key,
        is_checked=batch.in_progress_at is not None,
        requests=batch.requests,
        kept=batch.kept,
    )


def keeps_waiting(session: Session, *, seconds: float) -> bool:
    """Tell whether a batch waits of a tenant who has none running.

    Args:
        session: An open session.
        seconds: For how long it has waited at least, so that processes with room come first.

    Returns:
        True when there is one.
    """
    turns = _turns()
    query = sa.select(Batch.id).join(turns, turns.c.tenant_id == Batch.tenant_id)
    since = sa.func.coalesce(Batch.lease_until, Batch.created_at)
    query = query.where(*_waits(), turns.c.running == 0, since < clock.later(-seconds))
    return session.scalar(query.limit(1)) is not None


def beat(session: Session, claim: Claim, *, lease_seconds: float) -> Beat:
    """Renew a lease and hear what has become of the batch.

    Args:
        session: A writing session.
        claim: The claim.
        lease_seconds: For how long from now.

    Returns:
        Its status, and whether its window is over.

    Raises:
        Fenced: It is another's by now.
    """
    statement = (
        sa.update(Batch)
        .where(*_held(claim))
        .values(lease_until=clock.later(lease_seconds))
        .returning(Batch.status, Batch.expires_at < clock.now())
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        raise Fenced
    return Beat(row[0], bool(row[1]))


def move(session: Session, claim: Claim, status: BatchStatus, **values: int) -> BatchStatus:
    """Go on to ``in_progress`` or ``finalizing``, unless a cancel was asked for; may be repeated.

    Args:
        session: A writing session.
        claim: The claim.
        status: The next one.
        **values: ``requests``, once it is known.

    Returns:
        The status that the batch has now: that, or ``cancelling``. Raises ``Fenced``.
    """
    batch = _lock(session, claim)
    if status in BATCH_TRANSITIONS[batch.status]:
        batch.status = status
        setattr(batch, f"{status}_at", clock.now())
        for name, value in values.items():
            setattr(batch, name, value)
        session.flush()
    return batch.status


def keep_part(
    session: Session,
    claim: Claim,
    *,
    first: int,
    requests: int,
    keys: Mapping[str, str],
    completed: int,
    failed: int,
) -> None:
    """Note answers whose bytes lie in storage; a second time, after a lost commit, changes nothing.

    Args:
        session: A writing session.
        claim: The claim; raises ``Fenced`` when it is not valid any more.
        first: Place of the first request that is answered.
        requests: How many are, one after the other.
        keys: Where the bytes lie, by kind.
        completed: How many succeeded.
        failed: How many were refused.
    """
    batch = _lock(session, claim)
    if batch.kept >= first + requests:
        return
    batch.kept = first + requests
    batch.completed += completed
    batch.failed += failed
    batch.losses = 0
    for kind, key in keys.items():
        session.add(
            BatchPart(
                batch_id=claim.batch_id,
                kind=kind,
                first=first,
                tenant_id=claim.tenant_id,
                key=key,
            )
        )
    session.flush()


def list_parts(session: Session, batch_id: str) -> dict[str, list[str]]:
    """Give the parts that are kept.

    Args:
        session: An open session.
        batch_id: Of which batch.

    Returns:
        Keys in the order of the requests, by kind.
    """
    query = sa.select(BatchPart).where(BatchPart.batch_id == batch_id).order_by(BatchPart.first)
    found: dict[str, list[str]] = {}
    for part in session.scalars(query):
        found.setdefault(part.kind, []).append(part.key)
    return found


def release(session: Session, claim: Claim) -> None:
    """Give a batch back in order, for another process to go on at once; raises ``Fenced``.

    Args:
        session: A writing session.
        claim: The claim.
    """
    batch = _lock(session, claim)
    # not None: it tells since when the batch waits
    batch.owner, batch.lease_until = None, clock.now()
    # the next claim counts this attempt as a loss
    batch.losses -= 1
    session.flush()


def finish(
    session: Session,
    claim: Claim,
    status: BatchStatus,
    *,
    files: Mapping[str, File],
    errors: Mapping[str, Any] | None = None,
) -> Sequence[str]:
    """End a batch: the only place where one ends, and is announced to webhook endpoints.

    Args:
        session: A writing session.
        claim: The claim; raises ``Fenced`` when it is not valid any more.
        status: How it ends; ``cancelled`` when a cancel was asked for meanwhile.
        files: Its ``output`` and ``error`` file, those that there are; their bytes lie in storage.
        errors: Why it failed.

    Returns:
        Keys of the parts, which are to be removed after the commit.

    Raises:
        ValueError: The status does not end a batch, or not this one.
    """
    batch = _lock(session, claim)
    if batch.status is BatchStatus.CANCELLING:
        status, errors = BatchStatus.CANCELLED, None
    if status not in BATCH_ENDED or status not in BATCH_TRANSITIONS[batch.status]:
        message = f"a batch that is {batch.status} does not end as {status}"
        raise ValueError(message)
    for file in files.values():
        session.add(file)
    session.flush()
    batch.output_file_id = files["output"].id if "output" in files else None
    batch.error_file_id = files["error"].id if "error" in files else None
    batch.status = status
    setattr(batch, f"{status}_at", clock.now())
    batch.errors = None if errors is None else dict(errors)
    batch.owner, batch.lease_until = None, None
    parts = sa.delete(BatchPart).where(BatchPart.batch_id == claim.batch_id)
    keys = list(session.scalars(parts.returning(BatchPart.key)))
    session.flush()
    webhooks.announce(
        session,
        tenant_id=batch.tenant_id,
        type=WebhookEventType(f"batch.{status}"),
        object_id=batch.id,
    )
    return keys


def _waits() -> tuple[sa.ColumnElement[bool], ...]:
    return (Batch.status.not_in(BATCH_ENDED), _is_free())


def _turns() -> sa.Subquery:
    """Of each tenant with batches: how many run, and when the last of the others was let go."""
    is_free = _is_free()
    query = sa.select(
        Batch.tenant_id,
        sa.func.sum(sa.case((is_free, 0), else_=1)).label("running"),
        sa.func.max(sa.case((is_free, Batch.lease_until))).label("let_go_at"),
    )
    return query.where(Batch.status.not_in(BATCH_ENDED)).group_by(Batch.tenant_id).subquery()


def _is_free() -> sa.ColumnElement[bool]:
    return sa.or_(Batch.lease_until.is_(None), Batch.lease_until <= clock.now())


def _held(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Batch.id == claim.batch_id,
        Batch.attempt == claim.attempt,
        Batch.status.not_in(BATCH_ENDED),
    )


def _lock(session: Session, claim: Claim) -> Batch:
    query = sa.select(Batch).where(*_held(claim)).with_for_update()
    batch = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if batch is None:
        raise Fenced
    return batch
