"""The filter ``?metadata[team]=care`` of lists, whose keys the caller names."""

from typing import Any

from fastapi import Request

from core.errors import BadInput

METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "description": "`?metadata[team]=care` keeps those with that entry in `metadata`.",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 512},
    },
}
"""Read from the request itself: the framework has no parameter whose keys the caller names."""


def read_metadata(request: Request) -> dict[str, str]:
    """Read the filter.

    Args:
        request: Whose query is read.

    Returns:
        What each wanted entry must be; empty without a filter.

    Raises:
        BadInput: No entry of any metadata can be like this.
    """
    wanted = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata[") and name.endswith("]"):
            key = name[len("metadata[") : -1]
            if not 0 < len(key) <= 64 or len(value) > 512 or "\0" in key + value:
                raise BadInput(f"{name[:80]} cannot be an entry of metadata", param=name[:80])
            wanted[key] = value
    return wanted
