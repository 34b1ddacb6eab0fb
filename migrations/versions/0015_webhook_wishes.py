"""What an endpoint of webhooks was asked by, so that the same wish makes it once.

Revision: 0015, after: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLE = "webhook_endpoints"
INDEX = op.f("ix_webhook_endpoints_tenant_id_idempotency_key")


def upgrade() -> None:
    """Add the columns; of what is there nobody knows the wish."""
    op.add_column(TABLE, sa.Column("idempotency_key", sa.String(length=255), nullable=True))
    op.add_column(TABLE, sa.Column("request_digest", sa.String(length=80), nullable=True))
    op.create_index(INDEX, TABLE, ["tenant_id", "idempotency_key"], unique=True)


def downgrade() -> None:
    """Drop them."""
    op.drop_index(INDEX, TABLE)
    op.drop_column(TABLE, "request_digest")
    op.drop_column(TABLE, "idempotency_key")
