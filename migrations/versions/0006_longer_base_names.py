"""Room for the names of derived bases, such as ``smollm2@wanda-0.5-0123456789abcdef+int8``.

Revision: 0006, after: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BEFORE, _AFTER = sa.String(64), sa.String(128)


def upgrade() -> None:
    """Widen the columns."""
    _change(_BEFORE, _AFTER)


def downgrade() -> None:
    """Narrow them again; fails where a longer name is in use."""
    _change(_AFTER, _BEFORE)


def _change(before: sa.String, after: sa.String) -> None:
    for table in ("jobs", "adapters"):
        # SQLite changes no column in place: there the table is copied.
        with op.batch_alter_table(table) as batch:
            batch.alter_column(
                "base_model", existing_type=before, type_=after, existing_nullable=False
            )
