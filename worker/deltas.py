"""A trained delta on its way into storage, and what a row says of it.

Deltas lie under their digest: equal ones are one object, whoever made them.
"""

import logging
import threading
from typing import Any

from core.errors import ServiceError
from core.storage import ObjectStore, delta_key
from worker.engine import TrainedDelta

_log = logging.getLogger(__name__)

# Storage may be away for a moment; after so long (seconds) the attempt fails and says so.
_STORAGE_PATIENCE = (0.2, 0.5, 1.0, 2.0)


def store_delta(store: ObjectStore, delta: TrainedDelta, data: bytes) -> str:
    """Put a delta's bytes where its digest says; the same delta twice is one object.

    Args:
        store: Where to put it.
        delta: The delta.
        data: Its file.

    Returns:
        The storage key. Storage's last error is raised when it refused for too long.
    """
    key = delta_key(delta.digest)
    pause = threading.Event()
    for pause_seconds in _STORAGE_PATIENCE:
        try:
            store.put_new(key, data)
        except (ServiceError, OSError) as error:
            _log.warning("%s not stored, tried again: %s", key, error)
            pause.wait(pause_seconds)
        else:
            return key
    store.put_new(key, data)
    return key


def describe_delta(delta: TrainedDelta, *, key: str, size_bytes: int) -> dict[str, Any]:
    """Say what the row of an adapter says of its delta.

    Args:
        delta: The delta.
        key: Where it lies in storage.
        size_bytes: Of its file.

    Returns:
        Columns of an adapter by name; JSON values.
    """
    manifest = delta.manifest
    return {
        "base_model": manifest.base_model,
        "base_fingerprint": manifest.base_fingerprint,
        "task": manifest.task,
        "methods": [method.model_dump(mode="json") for method in manifest.methods],
        "labels": list(manifest.labels) if manifest.labels is not None else None,
        "template_digest": manifest.template_digest,
        "parameters": delta.parameters - delta.head_parameters,
        "bytes": size_bytes,
        "digest": delta.digest,
        "key": key,
    }
