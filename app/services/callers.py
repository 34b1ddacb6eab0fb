"""Who is asking: a tenant and what the key may do. The only door to every resource."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic

from core.db import Database, tenants
from core.errors import Forbidden, Unauthenticated, Unavailable

DEFAULT_TENANT = "default"
"""Owner of everything on the embedded default, and who everybody is while auth is off."""

MAX_KEY_CHARS = 200
"""Longer than any key; more is not hashed."""

TOUCH_AFTER = timedelta(minutes=1)
"""How old ``last_used_at`` may get before a request writes it."""


INSIDE = "tunery.caller"
"""Key of a connection's scope under which a program in this very process says who asks. What comes
over HTTP cannot set it: the server makes the scope."""

REMEMBER_SECONDS = 1.0
"""Finding a key costs more than the rest of the api's work for a prediction."""

MAX_KNOWN = 10_000


@dataclass(frozen=True)
class Caller:
    """A tenant with scopes.

    Attributes:
        tenant_id: Whose resources may be seen.
        scopes: What may be done with them.
        expires_at: When the key ends; None for never.
        key_id: With which key, for what asks longer than a request; None for none.
    """

    tenant_id: str
    scopes: frozenset[str]
    expires_at: datetime | None = None
    key_id: str | None = None

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


class KnownCallers:
    """Callers whose keys were found a moment ago, so that a burst of requests asks once.

    A revoked key is forgotten at once by the process that revoked it, and within
    ``REMEMBER_SECONDS`` by every other. Keeps hashes, no keys; each step is one of a dictionary,
    which threads may mix.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Caller, float]] = {}
        self._forgotten = 0

    @property
    def moment(self) -> int:
        """To be read before the database is, and given to ``remember``."""
        return self._forgotten

    def find(self, secret: str) -> Caller | None:
        """Find a caller that is still remembered.

        Args:
            secret: What the caller sent.

        Returns:
            The caller, or None: ask the database.
        """
        found = self._known.get(_hash(secret))
        if found is None or found[1] < monotonic():
            return None
        caller = found[0]
        is_expired = caller.expires_at is not None and caller.expires_at <= datetime.now(UTC)
        return None if is_expired else caller

    def remember(self, secret: str, caller: Caller, *, moment: int) -> None:
        """Keep a caller for a moment.

        Args:
            secret: What the caller sent.
            caller: What the database says.
            moment: Of the look-up: one that is older than a revocation is not kept.
        """
        if moment != self._forgotten:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[_hash(secret)] = (caller, monotonic() + REMEMBER_SECONDS)

    def forget_all(self) -> None:
        """Ask the database again for every key."""
        self._forgotten += 1
        self._known.clear()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


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
        # a note for people: a database that cannot take it must not cost the caller the answer
        with suppress(Unavailable), database.write() as session:
            tenants.touch_key(session, key.id)
    return Caller(key.tenant_id, frozenset(key.scopes), expires_at=key.expires_at, key_id=key.id)


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
