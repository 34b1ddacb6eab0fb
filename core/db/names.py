"""One space of names: within a tenant, a name means an adapter or an alias, never both.

Whoever makes either holds the name first (``lock_name``) and looks for the other kind, so that two
makers at once come one after the other. A job that has not ended holds the name of the adapter
that it will publish: it must not find the name taken when its training is over.
"""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.locks import lock_name
from core.db.models import Adapter, Alias, Job
from core.errors import BadInput, Conflict
from core.states import TERMINAL

ID_PREFIXES = ("adp_", "ckpt_")
"""Ids of what answers begin so; a name that did could be taken for one."""


def hold_for_adapter(
    session: Session, tenant_id: str, name: str, *, param: str = "adapter_name"
) -> None:
    """Hold a name until the transaction ends, for an adapter or a job that will publish one.

    Args:
        session: A writing session.
        tenant_id: Whose name.
        name: The adapter's; versions of it may exist.
        param: What the request calls it.

    Raises:
        Conflict: An alias has the name (code ``name_taken``).
    """
    _refuse_id(name, param)
    hold(session, tenant_id, name)
    query = sa.select(Alias.id).where(Alias.tenant_id == tenant_id, Alias.name == name)
    if session.scalars(query).one_or_none() is not None:
        message = f"an alias has the name {name!r}; name the adapter otherwise or delete the alias"
        raise Conflict(message, code="name_taken", param=param)


def hold(session: Session, tenant_id: str, name: str) -> None:
    """Hold a name until the transaction ends.

    Args:
        session: A writing session.
        tenant_id: Whose name.
        name: The name, taken or free.
    """
    lock_name(session, f"names/{tenant_id}/{name}")


def check_for_alias(session: Session, tenant_id: str, name: str) -> None:
    """Refuse a new alias a name that means something already.

    Args:
        session: A session that holds the name.
        tenant_id: Whose name.
        name: The alias's.

    Raises:
        Conflict: An adapter has the name, or a job that has not ended will publish one (code
            ``name_taken``).
    """
    _refuse_id(name, "name")
    version = session.scalar(
        sa.select(sa.func.max(Adapter.version)).where(
            Adapter.tenant_id == tenant_id, Adapter.name == name, Adapter.deleted_at.is_(None)
        )
    )
    if version is not None:
        message = f"{name}@{version} is an adapter; name the alias otherwise"
        raise Conflict(message, code="name_taken", param="name")
    job_id = session.scalars(
        sa.select(Job.id)
        .where(Job.tenant_id == tenant_id, Job.adapter_name == name, Job.status.not_in(TERMINAL))
        .limit(1)
    ).one_or_none()
    if job_id is not None:
        message = f"job {job_id} will publish an adapter named {name!r}; name the alias otherwise"
        raise Conflict(message, code="name_taken", param="name")


def _refuse_id(name: str, param: str) -> None:
    if name.startswith(ID_PREFIXES):
        prefixes = " or ".join(ID_PREFIXES)
        message = f"{name!r} reads like an id; choose a name that does not begin with {prefixes}"
        raise BadInput(message, param=param)
