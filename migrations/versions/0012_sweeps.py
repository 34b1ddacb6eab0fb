"""Sweeps: their rows, the points that were tried, and what validation gave for each.

Revision: 0012, after: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# as they were at this revision: a migration must not change with core.db.base
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
STATUSES = "'running', 'testing', 'cancelling', 'succeeded', 'failed', 'cancelled'"
INDEXES = (
    ("tenant_id", "id"),
    ("tenant_id", "request_digest"),
    ("dataset_id",),
    ("status", "sent_at"),
)


def upgrade() -> None:
    """Make the tables; jobs that are there belong to no sweep."""
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("settled", sa.Integer(), nullable=False),
        sa.Column("sent_at", MOMENT, nullable=False),
        sa.Column("best_job_id", sa.String(length=40), nullable=True),
        sa.Column("test_job_id", sa.String(length=40), nullable=True),
        sa.Column("comparison", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_digest", sa.String(length=80), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_sweeps_status")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_sweeps_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_sweeps_dataset_id_datasets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
        sa.UniqueConstraint(
            "tenant_id", "idempotency_key", name=op.f("uq_sweeps_tenant_id_idempotency_key")
        ),
    )
    for columns in INDEXES:
        op.create_index(op.f(f"ix_sweeps_{'_'.join(columns)}"), "sweeps", list(columns))
    op.create_table(
        "sweep_trials",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("params", JSON, nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.ForeignKeyConstraint(
            ["sweep_id"], ["sweeps.id"], name=op.f("fk_sweep_trials_sweep_id_sweeps")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_sweep_trials_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_sweep_trials_job_id_jobs")),
        sa.PrimaryKeyConstraint("sweep_id", "number", name=op.f("pk_sweep_trials")),
        sa.UniqueConstraint("job_id", name=op.f("uq_sweep_trials_job_id")),
    )
    op.create_table(
        "validation_draws",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("pairing", sa.String(length=80), nullable=False),
        sa.Column("draws", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_validation_draws_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_validation_draws_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("job_id", "metric", name=op.f("pk_validation_draws")),
    )
    op.add_column("jobs", sa.Column("sweep_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_jobs_sweep_id"), "jobs", ["sweep_id"])


def downgrade() -> None:
    """Drop the sweeps; their jobs and adapters stay."""
    op.drop_index(op.f("ix_jobs_sweep_id"), table_name="jobs")
    op.drop_column("jobs", "sweep_id")
    op.drop_table("validation_draws")
    op.drop_table("sweep_trials")
    for columns in reversed(INDEXES):
        op.drop_index(op.f(f"ix_sweeps_{'_'.join(columns)}"), table_name="sweeps")
    op.drop_table("sweeps")
