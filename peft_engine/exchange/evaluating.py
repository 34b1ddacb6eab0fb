"""What an adapter that no job made is worth on rows with known answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_engine.delta import Delta
from peft_engine.errors import DataError
from peft_engine.tasks.protocol import Forward, Head, Task
from peft_engine.tasks.table import HEAD_TASKS, find_task

_BATCH_ROWS = 16
"""Rows of one forward: as for evaluation in training, where batches are of this size by default."""


def evaluate_delta(
    forward: Forward, delta: Delta, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Evaluate a delta.

    Args:
        forward: The base with the delta in force; never asked to write text.
        delta: The delta, on the device of the base.
        records: Canonical records of its task.

    Returns:
        ``rows`` and the ``values`` of the task's metrics.

    Raises:
        DataError: There are no rows.
    """
    if not records:
        raise DataError("there are no rows to evaluate on", code="empty_file", param="dataset_id")
    manifest = delta.manifest
    task: Task = find_task(manifest.task, records)
    head = None
    if manifest.head is not None:
        task = HEAD_TASKS[manifest.head.kind]
        head = Head(manifest.head, delta.head, manifest.labels or ())
    examples = task.encode(
        forward.base, records, labels=manifest.labels, max_length=manifest.max_length
    )
    found = task.evaluate(forward, head, examples, records, batch_size=_BATCH_ROWS, generate_rows=0)
    return {"rows": len(records), "values": dict(found.metrics)}
