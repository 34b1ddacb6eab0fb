"""The tables. Queries stand beside this folder, one module per resource.

Every row belongs to a tenant, but for tenants themselves and inference processes.
"""

from core.db.models.adapters import Adapter, Alias, AliasMove, MetricDraw
from core.db.models.batches import Batch, BatchPart, File
from core.db.models.datasets import Dataset, Upload, UploadPart
from core.db.models.jobs import Checkpoint, Estimate, Job, JobEvent, JobMetric
from core.db.models.sweeps import Sweep, SweepTrial, ValidationDraw
from core.db.models.tenants import ApiKey, InferenceNode, Tenant
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEvent

__all__ = [
    "Adapter",
    "Alias",
    "AliasMove",
    "ApiKey",
    "Batch",
    "BatchPart",
    "Checkpoint",
    "Dataset",
    "Estimate",
    "File",
    "InferenceNode",
    "Job",
    "JobEvent",
    "JobMetric",
    "MetricDraw",
    "Sweep",
    "SweepTrial",
    "Tenant",
    "Upload",
    "UploadPart",
    "ValidationDraw",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
]
