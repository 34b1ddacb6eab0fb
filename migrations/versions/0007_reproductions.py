"""On what a job was trained, and which job it was made to repeat.

Revision: 0007, after: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns; jobs that are there keep them empty."""
    op.add_column("jobs", sa.Column("environment", JSON, nullable=True))
    op.add_column("jobs", sa.Column("reproduces_job_id", sa.String(length=40), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("jobs", "reproduces_job_id")
    op.drop_column("jobs", "environment")
