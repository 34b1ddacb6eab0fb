"""Who is asking: a tenant and what the key may do. The only door to every resource."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.db import Database, tenants
from core.errors import Forbidden, Unauthenticated

DEFAULT_TENANT = "default"
"""Owner of everything on the embedded default, and who everybody is while auth is off."""

MAX_KEY_CHARS = 200
"""Longer than any key; more is not hashed."""


TOUCH_AFTER = timedelta(minutes=1)
"""How old ``last_used_at`` may get before a request writes it."""


@dataclass(frozen=True)
class Caller:
    """A tenant with scopes.

    Attributes:
        tenant_id: Whose resources may be seen.
        scopes: What may be done with them.
    """

    tenant_id: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Check that the key may do something.

        Args:
            scope: ``read``, ``write``, ``predict`` or ``admin``.

        Raises:
            Forbidden: It may not.
        """
        if scope not in self.scopes:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(f"this key lacks the scope {scope!r} (it has {has}); use another key")


def authenticate(database: Database, secret: str | None) -> Caller:
    """Find the caller of a key.

    Args:
        database: Where keys are.
        secret: What the caller sent; None when nothing.

    Returns:
        The caller.

    Raises:
        Unauthenticated: No key, or one that is unknown, expired or revoked.
    """
    if not secret:
        raise Unauthenticated("no API key; send the header Authorization: Bearer tk_…")
    if len(secret) > MAX_KEY_CHARS:
        raise Unauthenticated("the API key is not valid")
    with database.read() as session:
        key = tenants.authenticate(session, secret)
    if key is None:
        raise Unauthenticated("the API key is not valid, has expired or was revoked")
    if _is_touch_due(key.last_used_at):
        with database.write() as session:
            tenants.touch_key(session, key.id)
    return Caller(key.tenant_id, frozenset(key.scopes))


def _is_touch_due(last_used_at: datetime | None) -> bool:
    # a hint without a query; the update itself looks at the database's clock
    return last_used_at is None or datetime.now(UTC) - last_used_at > TOUCH_AFTER


def assume_default(database: Database) -> Caller:
    """Give the caller of a service whose auth is off; makes the tenant when there is none.

    Args:
        database: Where tenants are.

    Returns:
        The default tenant with every scope.
    """
    with database.read() as session:
        tenant = tenants.find_tenant(session, name=DEFAULT_TENANT)
    if tenant is None:
        with database.write() as session:
            tenant = tenants.ensure_tenant(session, name=DEFAULT_TENANT)
    return Caller(tenant.id, frozenset(tenants.SCOPES))
