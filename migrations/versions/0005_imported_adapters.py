"""Where an adapter comes from that no job of ours made, and which request brought it.

Revision: 0005, after: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("adapters", sa.Column("origin", JSON, nullable=True))
    op.add_column("adapters", sa.Column("idempotency_key", sa.String(length=255), nullable=True))
    op.add_column("adapters", sa.Column("request_digest", sa.String(length=80), nullable=True))
    # an index, since SQLite adds no constraint to a table that is there
    op.create_index(
        op.f("ix_adapters_tenant_id_idempotency_key"),
        "adapters",
        ["tenant_id", "idempotency_key"],
        unique=True,
    )
    op.create_index(
        op.f("ix_adapters_tenant_id_request_digest"), "adapters", ["tenant_id", "request_digest"]
    )


def downgrade() -> None:
    """Drop them; imported adapters stay."""
    op.drop_index(op.f("ix_adapters_tenant_id_request_digest"), table_name="adapters")
    op.drop_index(op.f("ix_adapters_tenant_id_idempotency_key"), table_name="adapters")
    for column in ("request_digest", "idempotency_key", "origin"):
        op.drop_column("adapters", column)
