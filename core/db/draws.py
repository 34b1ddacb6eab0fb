"""What the gate of an alias compares: each metric of an adapter over resamples of its test split.

Two adapters that were tested on the same rows were resampled alike, so the difference of their
numbers, resample by resample, is the paired bootstrap of their difference; neither the rows nor
the models are needed again. Trials of a sweep are compared so too, on their validation split.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.models import Adapter, MetricDraw, ValidationDraw


class Drawn(Protocol):
    """A metric of a model on a test split, as training gives it."""

    @property
    def value(self) -> float:
        """Over all rows, each once."""

    @property
    def values(self) -> Sequence[float]:
        """Over each resample."""

    @property
    def rows(self) -> int:
        """How many rows were drawn from."""

    @property
    def pairing(self) -> str:
        """``sha256:…`` of the resamples: only equal ones can be compared one by one."""

    @property
    def lower_is_better(self) -> bool:
        """True for losses and errors."""


def put(
    session: Session,
    adapter: Adapter,
    found: Mapping[str, Drawn],
    *,
    test_sha256: str,
    max_length: int,
    deciding: str | None,
) -> None:
    """Keep what an adapter's test gave; part of its publication.

    Args:
        session: The session that published it.
        adapter: The adapter.
        found: By name of the metric; values that are not finite cannot be compared and are left
            out.
        test_sha256: Of the test split's records.
        max_length: Tokens after which its rows were cut.
        deciding: The metric by which its best step was chosen.
    """
    for metric, own in found.items():
        session.add(
            MetricDraw(
                adapter_id=adapter.id,
                tenant_id=adapter.tenant_id,
                metric=metric,
                test_sha256=test_sha256,
                rows=own.rows,
                max_length=max_length,
                pairing=own.pairing,
                value=own.value,
                lower_is_better=own.lower_is_better,
                deciding=metric == deciding,
                draws=struct.pack(f"<{len(own.values)}d", *own.values),
            )
        )
    session.flush()


def put_validation(
    session: Session, job_id: str, tenant_id: str, found: Mapping[str, Drawn]
) -> None:
    """Keep what a job's validation gave; part of its publication.

    Args:
        session: The session that published it.
        job_id: Which job.
        tenant_id: Whose job.
        found: By name of the metric; empty for a job that was tested.
    """
    for metric, own in found.items():
        session.add(
            ValidationDraw(
                job_id=job_id,
                tenant_id=tenant_id,
                metric=metric,
                rows=own.rows,
                pairing=own.pairing,
                draws=struct.pack(f"<{len(own.values)}d", *own.values),
            )
        )
    session.flush()


def list_validation(
    session: Session, tenant_id: str, job_ids: Sequence[str], metric: str
) -> dict[str, ValidationDraw]:
    """Read what the validation of some jobs gave.

    Args:
        session: An open session.
        tenant_id: Whose jobs.
        job_ids: Which ones.
        metric: One metric.

    Returns:
        By job; those whose metric cannot be resampled are left out.
    """
    query = sa.select(ValidationDraw).where(
        ValidationDraw.tenant_id == tenant_id,
        ValidationDraw.job_id.in_(job_ids),
        ValidationDraw.metric == metric,
    )
    return {row.job_id: row for row in session.scalars(query)}


def list_of(session: Session, tenant_id: str, adapter_id: str) -> dict[str, MetricDraw]:
    """Read what an adapter's test gave.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_id: Whose test.

    Returns:
        By name of the metric; empty for an adapter without a test split.
    """
    query = sa.select(MetricDraw).where(
        MetricDraw.tenant_id == tenant_id, MetricDraw.adapter_id == adapter_id
    )
    return {row.metric: row for row in session.scalars(query.order_by(MetricDraw.metric))}


def values_of(row: MetricDraw | ValidationDraw) -> tuple[float, ...]:
    """Unpack the metric over each resample.

    Args:
        row: As read.

    Returns:
        One number a resample.
    """
    return struct.unpack(f"<{len(row.draws) // 8}d", row.draws)
