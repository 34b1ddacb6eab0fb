"""What the description of a route says about its failures; taken from the one table of codes."""

from typing import Any

from app.schemas.shared import ErrorAnswer
from core.error_codes import ERROR_CODES

JSON_BODY = ("invalid_json", "unsupported_media_type", "too_large")
"""Codes of what can be wrong with a body of JSON, whatever it says."""

FORM_BODY = (
    "missing_field",
    "unknown_field",
    "upload_incomplete",
    "too_large",
    "unsupported_media_type",
    "storage_unavailable",
)
"""The same of a form that brings a file."""

UNTRAINABLE = (
    "dataset_not_found",
    "dataset_not_ready",
    "dataset_leakage",
    "task_mismatch",
    "task_not_supported",
    "unsupported",
    "base_mismatch",
    "parent_mismatch",
    "too_many_devices",
    "too_long",
    "unknown_metric",
)
"""Of a route that takes a job; what it refers to by name is called otherwise under ``/v1``."""

_GUARDED = ("invalid_api_key", "missing_scope")
_ALWAYS = ("bad_input", "database_unavailable")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def error_answers(*codes: str, guarded: bool = True) -> dict[int | str, dict[str, Any]]:
    """Document the failures of a route.

    Args:
        *codes: Codes of ``core.error_codes`` that the route can answer, besides those of every
            route.
        guarded: Whether the route asks for a key.

    Returns:
        What FastAPI takes as ``responses``: one entry a status, one example a code.
    """
    wanted = dict.fromkeys((*codes, *_ALWAYS, *(_GUARDED if guarded else ())))
    answers: dict[int | str, dict[str, Any]] = {}
    for code in wanted:
        entry = ERROR_CODES[code]
        answer = answers.setdefault(
            entry.status,
            {
                "model": ErrorAnswer,
                "description": "",
                # spelled out, since a streaming route would document its own media type for errors
                # too
                "content": {"application/json": {"examples": {}}},
            },
        )
        answer["description"] = f"{answer['description']} `{code}`".strip()
        answer["content"]["application/json"]["examples"][code] = {
            "summary": entry.doc,
            "value": {
                "error": {
                    "message": entry.doc,
                    "type": _TYPES.get(
                        entry.status,
                        "server_error" if entry.status >= 500 else "invalid_request_error",
                    ),
                    "code": code,
                    "param": None,
                    "request_id": "req_06f1k2m3n4p5q6r7s8t9v0w1x2",
                }
            },
        }
    return dict(sorted(answers.items(), key=lambda item: str(item[0])))
