"""An index to find the adapters that were continued from one.

Revision: 0003, after: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index(op.f("ix_adapters_parent_adapter_id"), "adapters", ["parent_adapter_id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index(op.f("ix_adapters_parent_adapter_id"), table_name="adapters")
