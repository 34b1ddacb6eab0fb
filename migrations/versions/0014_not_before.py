"""Until when a queued job or estimate that met an outage is held back.

Revision: 0014, after: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLES = ("jobs", "estimates")


def upgrade() -> None:
    """Add the columns; nothing is held back."""
    for table in TABLES:
        op.add_column(table, sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Drop them; what was held back goes at once."""
    for table in TABLES:
        op.drop_column(table, "not_before")
