"""What is said: the same bytes that are signed and sent."""

import json
from datetime import datetime


def make_body(*, event_id: str, type: str, object_id: str, happened_at: datetime) -> bytes:
    """Write an event as OpenAI does.

    Args:
        event_id: Of the event; the same for every endpoint that is told.
        type: What happened.
        object_id: The job or batch, as ``/v1`` knows it.
        happened_at: When.

    Returns:
        JSON in UTF-8; made again, the same bytes.
    """
    event = {
        "id": event_id,
        "object": "event",
        "type": type,
        "created_at": int(happened_at.timestamp()),
        "data": {"id": object_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()
