"""The database: tables, transactions, and every query there is.

``Session`` and ``Database`` are what other packages need to name; query modules are imported as
``from core.db import jobs``. Query functions never commit: ``Database.write()`` does, once, at its
end.
"""

from sqlalchemy.orm import Session

from core.db.engine import Database, open_database
from core.db.models import (
    Adapter,
    Alias,
    AliasMove,
    ApiKey,
    Batch,
    BatchPart,
    Checkpoint,
    Dataset,
    Estimate,
    File,
    InferenceNode,
    Job,
    JobEvent,
    JobMetric,
    MetricDraw,
    Sweep,
    SweepTrial,
    Tenant,
    Upload,
    UploadPart,
    ValidationDraw,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)
from core.db.pages import Page

__all__ = [
    "Adapter",
    "Alias",
    "AliasMove",
    "ApiKey",
    "Batch",
    "BatchPart",
    "Checkpoint",
    "Database",
    "Dataset",
    "Estimate",
    "File",
    "InferenceNode",
    "Job",
    "JobEvent",
    "JobMetric",
    "MetricDraw",
    "Page",
    "Session",
    "Sweep",
    "SweepTrial",
    "Tenant",
    "Upload",
    "UploadPart",
    "ValidationDraw",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
    "open_database",
]
