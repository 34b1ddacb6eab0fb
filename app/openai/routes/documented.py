"""What the description says of the routes that give texts."""

from typing import Any

from app.schemas.errors import JSON_BODY, error_answers

_EVENT = {
    "type": "object",
    "description": "One event; `data` is a chunk, `{error}`, or `[DONE]`.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}


def text_answers(example: str) -> dict[int | str, dict[str, Any]]:
    """Document the answers of a route that writes.

    Args:
        example: An event of its stream.

    Returns:
        What FastAPI takes as ``responses``.
    """
    stream = {"schema": _EVENT, "example": f"data: {example}\n\ndata: [DONE]\n\n"}
    return {
        200: {
            "description": "The answer; server-sent events for `stream`.",
            "content": {"text/event-stream": stream},
        },
        **asking_answers(),
    }


def asking_answers() -> dict[int | str, dict[str, Any]]:
    """Document the failures of a route that asks models.

    Returns:
        What FastAPI takes as ``responses``.
    """
    return error_answers(
        "model_not_found",
        "task_mismatch",
        "context_length_exceeded",
        "unsupported",
        "too_many_rows",
        "queue_full",
        "base_not_served",
        "inference_unavailable",
        "deadline_exceeded",
        *JSON_BODY,
    )


def body_examples(**examples: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Document a body.

    Args:
        **examples: A line and a body each.

    Returns:
        What FastAPI takes as ``openapi_extra``.
    """
    shown = {
        name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()
    }
    return {"requestBody": {"content": {"application/json": {"examples": shown}}}}
