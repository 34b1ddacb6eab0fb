"""Tenants and their API keys.

A key is shown once and kept as a hash. Finding the tenant of a key is the one question here that is
asked without a tenant.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, owned
from core.db.locks import lock_name
from core.db.models import ApiKey, Tenant
from core.db.pages import Page
from core.errors import BadInput, Conflict
from core.ids import new_id

KEY_PREFIX = "tk_"
SCOPES = ("read", "write", "predict", "admin")
_SHOWN_CHARACTERS = 10
# a row per request would be a write per request: once a minute tells enough
_TOUCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key in the one moment in which it is known.

    Attributes:
        row: What is kept.
        secret: The key itself, to be shown once.
    """

    row: ApiKey
    secret: str

    def __repr__(self) -> str:
        """Name the key without its secret."""
        return f"NewKey({self.row.id}, {self.row.prefix}…)"


def hash_key(secret: str) -> str:
    """Hash a key as it is kept.

    Args:
        secret: The key.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def create_tenant(session: Session, *, name: str) -> Tenant:
    """Make a tenant.

    Args:
        session: A writing session.
        name: Unique name.

    Returns:
        The tenant.

    Raises:
        Conflict: The name is taken.
    """
    lock_name(session, f"tenants/{name}")
    if find_tenant(session, name=name) is not None:
        message = f"a tenant named {name!r} exists"
        raise Conflict(message, param="name")
    tenant = Tenant(id=new_id("ten"), name=name)
    session.add(tenant)
    session.flush()
    return tenant


def find_tenant(session: Session, *, name: str) -> Tenant | None:
    """Find a tenant by name.

    Args:
        session: An open session.
        name: Its name.

    Returns:
        The tenant, or None.
    """
    return session.scalars(sa.select(Tenant).where(Tenant.name == name)).one_or_none()


def list_tenants(session: Session) -> list[Tenant]:
    """List all tenants.

    Args:
        session: An open session.

    Returns:
        The oldest first.
    """
    return list(session.scalars(sa.select(Tenant).order_by(Tenant.id)))


def ensure_tenant(session: Session, *, name: str = "default") -> Tenant:
    """Find a tenant by name, or make it.

    Args:
        session: A writing session.
        name: Its name.

    Returns:
        The tenant.
    """
    lock_name(session, f"tenants/{name}")
    return find_tenant(session, name=name) or create_tenant(session, name=name)


def ensure_first_key(session: Session, *, name: str = "default") -> str | None:
    """Make the first tenant and its first key, on a database that has no key yet.

    Args:
        session: A writing session.
        name: Name of the tenant.

    Returns:
        The key, to be shown once; None when there is any key already.
    """
    lock_name(session, "tenants")
    if session.scalar(sa.select(sa.func.count()).select_from(ApiKey)):
        return None
    tenant = ensure_tenant(session, name=name)
    return create_key(session, tenant.id, name="first").secret


def create_key(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    scopes: Sequence[str] = SCOPES,
    expires_at: datetime | None = None,
) -> NewKey:
    """Make an API key.

    Args:
        session: A writing session.
        tenant_id: Whose key.
        name: What the owner calls it.
        scopes: What it may do; out of ``SCOPES``.
        expires_at: When it stops to work; None for never.

    Returns:
        The row and the secret, which cannot be read again.

    Raises:
        BadInput: A scope that does not exist.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        message = f"unknown scopes {unknown}; choose among {', '.join(SCOPES)}"
        raise BadInput(message, param="scopes")
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        prefix=secret[:_SHOWN_CHARACTERS],
        hash=hash_key(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return NewKey(row, secret)


def authenticate(session: Session, secret: str) -> ApiKey | None:
    """Find the valid key that a caller sent.

    Args:
        session: An open session; nothing is written.
        secret: What the caller sent.

    Returns:
        The key with its tenant and scopes; None when it is unknown, expired or revoked.
    """
    query = sa.select(ApiKey).where(ApiKey.hash == hash_key(secret), _valid())
    return session.scalars(query).one_or_none()


def is_valid(session: Session, tenant_id: str, key_id: str) -> bool:
    """Tell whether a key still works, for what goes on longer than the request that brought it.

    Args:
        session: An open session.
        tenant_id: Whose key.
        key_id: Which key.

    Returns:
        False when it was revoked, has expired or is unknown.
    """
    query = sa.select(ApiKey.id).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id, _valid())
    return session.scalar(query) is not None


def touch_key(session: Session, key_id: str) -> None:
    """Note that a key was used, at most once a minute.

    Args:
        session: A writing session.
        key_id: The key in use.
    """
    session.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id, _stale())
        .values(last_used_at=clock.now())
        .execution_options(synchronize_session=False)
    )


def list_keys(
    session: Session, tenant_id: str, *, limit: int = 100, after: str | None = None
) -> Page[ApiKey]:
    """List a tenant's keys, newest first, revoked ones too.

    Args:
        session: An open session.
        tenant_id: Whose keys.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    return owned.list_page(session, ApiKey, tenant_id, limit=limit, after=after)


def revoke_key(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """Make a key invalid for ever; a second time changes nothing.

    Args:
        session: A writing session.
        tenant_id: Whose key.
        key_id: Which one.

    Returns:
        The key; ``NotFound`` when the tenant has none such.
    """
    session.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    return owned.get(session, ApiKey, tenant_id, key_id)


def _valid() -> sa.ColumnElement[bool]:
    return sa.and_(
        ApiKey.revoked_at.is_(None),
        sa.or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > clock.now()),
    )


def _stale() -> sa.ColumnElement[bool]:
    return sa.or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < clock.later(-_TOUCH_SECONDS))
