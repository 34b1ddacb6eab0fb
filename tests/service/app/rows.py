"""Rows and files for the tests of the HTTP edge."""

import json
from typing import Any

import httpx


def records(count: int = 40, *, word: str = "row") -> list[dict[str, Any]]:
    """Distinct rows of two classes."""
    labels = ("arrived", "lost")
    return [
        {"text": f"{word} number {place} says something {place * 7}", "label": labels[place % 2]}
        for place in range(count)
    ]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(client: httpx.Client, *, word: str = "row", **fields: str) -> dict[str, Any]:
    """Send a data set; gives the answer."""
    response = client.post(
        "/datasets", files={"file": (f"{word}.jsonl", jsonl(records(word=word)))}, data=fields
    )
    assert response.status_code in {200, 201}, response.text
    answer: dict[str, Any] = response.json()
    return answer


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after checking its shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "code", "param", "request_id"} <= set(error)
    assert error["request_id"] == response.headers["x-request-id"]
    for secret in ("Traceback", "SELECT", "/work", ".py", "sqlalchemy"):
        assert secret not in response.text
    return error
