"""Files of requests and answers, and the batches that make the one of the other.

Revision: 0009, after: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# as they were at this revision: a migration must not change with core.db.base
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
STATUS = sa.Enum(
    "validating",
    "in_progress",
    "finalizing",
    "cancelling",
    "completed",
    "failed",
    "expired",
    "cancelled",
    name="status",
    native_enum=False,
    create_constraint=True,
    length=20,
)


def upgrade() -> None:
    """Make the tables."""
    _make_files()
    _make_batches()
    op.create_table(
        "batch_parts",
        sa.Column("batch_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("first", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_parts_batch_id_batches")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_batch_parts_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("batch_id", "kind", "first", name=op.f("pk_batch_parts")),
    )
    op.create_index(op.f("ix_batch_parts_key"), "batch_parts", ["key"])


def _make_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("purpose", sa.String(length=20), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_digest", sa.String(length=80), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("deleted_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_files_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint(
            "tenant_id", "idempotency_key", name=op.f("uq_files_tenant_id_idempotency_key")
        ),
    )
    op.create_index(op.f("ix_files_tenant_id_id"), "files", ["tenant_id", "id"])
    op.create_index(
        op.f("ix_files_tenant_id_request_digest"), "files", ["tenant_id", "request_digest"]
    )


def _make_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("input_file_id", sa.String(length=40), nullable=False),
        sa.Column("metadata", JSON, nullable=True),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("errors", JSON, nullable=True),
        sa.Column("output_file_id", sa.String(length=40), nullable=True),
        sa.Column("error_file_id", sa.String(length=40), nullable=True),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("requests", "kept", "completed", "failed", "attempt", "losses")
        ),
        sa.Column("owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_digest", sa.String(length=80), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        *(
            sa.Column(f"{name}_at", MOMENT, nullable=True)
            for name in (
                "in_progress",
                "finalizing",
                "cancelling",
                "completed",
                "failed",
                "expired",
                "cancelled",
            )
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_batches_tenant_id_tenants")
        ),
        *(
            sa.ForeignKeyConstraint([name], ["files.id"], name=op.f(f"fk_batches_{name}_files"))
            for name in ("input_file_id", "output_file_id", "error_file_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint(
            "tenant_id", "idempotency_key", name=op.f("uq_batches_tenant_id_idempotency_key")
        ),
    )
    for columns in (
        ("tenant_id", "id"),
        ("tenant_id", "request_digest"),
        ("input_file_id",),
        ("status", "lease_until"),
    ):
        op.create_index(op.f(f"ix_batches_{'_'.join(columns)}"), "batches", list(columns))


def downgrade() -> None:
    """Drop them; their objects are leftovers then."""
    for table in ("batch_parts", "batches", "files"):
        op.drop_table(table)
