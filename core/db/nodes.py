"""Inference processes: they announce themselves and are forgotten when they fall silent."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import InferenceNode


def announce(
    session: Session,
    *,
    id: str,
    url: str,
    bases: list[Any],
    device: str,
    precision: dict[str, Any],
    status: str,
) -> None:
    """Say that a process is alive; the first time it is noted, later times it is renewed.

    Args:
        session: A writing session.
        id: The process's own id, new at each start.
        url: Where it answers.
        bases: Base models that it holds, as ``GET /bases`` tells.
        device: Such as ``cpu`` or ``cuda:0``.
        precision: ``{base: precision}``.
        status: ``starting``, ``ready`` or ``draining``.
    """
    values = {
        "url": url,
        "bases": bases,
        "device": device,
        "precision": precision,
        "status": status,
        "seen_at": clock.now(),
    }
    statement = (
        sa.update(InferenceNode)
        .where(InferenceNode.id == id)
        .values(**values)
        .returning(InferenceNode.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalars(statement).one_or_none() is None:
        session.add(InferenceNode(id=id, **values))
        session.flush()


def list_live(session: Session, *, within_seconds: float = 15.0) -> list[InferenceNode]:
    """List the processes that were heard of lately.

    Args:
        session: An open session.
        within_seconds: How lately.

    Returns:
        By id; in every status.
    """
    query = sa.select(InferenceNode).where(InferenceNode.seen_at > clock.later(-within_seconds))
    return list(session.scalars(query.order_by(InferenceNode.id)))


def remove(session: Session, node_id: str) -> None:
    """Forget a process that ends in order; an unknown one is no error.

    Args:
        session: A writing session.
        node_id: Which one.
    """
    session.execute(sa.delete(InferenceNode).where(InferenceNode.id == node_id))


def forget_silent(session: Session, *, after_seconds: float) -> int:
    """Forget processes that ended without a word.

    Args:
        session: A writing session.
        after_seconds: How long they have been silent.

    Returns:
        How many were forgotten.
    """
    statement = (
        sa.delete(InferenceNode)
        .where(InferenceNode.seen_at < clock.later(-after_seconds))
        .returning(InferenceNode.id)
    )
    return len(list(session.scalars(statement)))
