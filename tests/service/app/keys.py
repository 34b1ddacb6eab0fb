"""Keys of the two tenants that tests of the face have."""

from core.db import Database, tenants


def create_first_keys(database: Database) -> list[str]:
    """A key with every scope for the tenant that is asked, and one for another."""
    with database.write() as session:
        return [
            tenants.create_key(
                session, tenants.ensure_tenant(session, name=name).id, name="first"
            ).secret
            for name in ("default", "other")
        ]
