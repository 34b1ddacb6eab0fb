"""Aliases and their history.

Revision: 0002, after: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# as they were at this revision: a migration must not change with core.db.base
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "aliases",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("adapter_id", sa.String(length=40), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_aliases_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_aliases_adapter_id_adapters")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aliases")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_aliases_tenant_id_name")),
    )
    op.create_index(op.f("ix_aliases_adapter_id"), "aliases", ["adapter_id"])
    op.create_table(
        "alias_moves",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("adapter_id", sa.String(length=40), nullable=True),
        sa.Column("previous_adapter_id", sa.String(length=40), nullable=True),
        sa.Column("restored_revision", sa.Integer(), nullable=True),
        sa.Column("gate", JSON, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "action IN ('set', 'rollback', 'delete')", name=op.f("ck_alias_moves_action")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_alias_moves_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_alias_moves_adapter_id_adapters")
        ),
        sa.ForeignKeyConstraint(
            ["previous_adapter_id"],
            ["adapters.id"],
            name=op.f("fk_alias_moves_previous_adapter_id_adapters"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", "revision", name=op.f("pk_alias_moves")),
    )


def downgrade() -> None:
    """Drop the tables, and every alias with them."""
    op.drop_table("alias_moves")
    op.drop_index(op.f("ix_aliases_adapter_id"), table_name="aliases")
    op.drop_table("aliases")
