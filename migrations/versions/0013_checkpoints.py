"""The delta of a checkpoint, apart from the state that only training reads.

Revision: 0013, after: 0012
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns; checkpoints that are there keep their delta in their state."""
    op.add_column("checkpoints", sa.Column("delta_key", sa.String(length=255), nullable=True))
    op.add_column("checkpoints", sa.Column("delta", JSON, nullable=True))
    op.create_index(op.f("ix_checkpoints_delta_key"), "checkpoints", ["delta_key"])


def downgrade() -> None:
    """Drop them; a job goes on from the checkpoints that were there before."""
    op.execute("DELETE FROM checkpoints WHERE delta_key IS NOT NULL")
    op.drop_index(op.f("ix_checkpoints_delta_key"), table_name="checkpoints")
    op.drop_column("checkpoints", "delta")
    op.drop_column("checkpoints", "delta_key")
