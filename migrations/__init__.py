"""Alembic migrations; ``core.db.migrate`` runs them from a checkout and from an installed package
alike."""
