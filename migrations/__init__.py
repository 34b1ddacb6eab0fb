"""Alembic migrations, run by ``core.db.migrate`` from a checkout or an installed package."""
