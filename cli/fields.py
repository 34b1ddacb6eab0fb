"""`--set a.b=value` and `--file`: fields of a request that have no option of their own."""

import json
from pathlib import Path
from typing import Any

from cli.client import RequestFailedError


def read_setting(body: dict[str, Any], setting: str) -> None:
    """Puts `a.b=value` into a body, the value read as JSON where it is JSON.

    Args:
        body: Of a request.
        setting: What the option says.

    Raises:
        RequestFailedError: It says nothing that can be put.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        reason = f"--set takes FIELD=VALUE, not {setting!r}"
        raise RequestFailedError(reason, code="bad_option")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *parents, last = path.split(".")
    place = body
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            reason = f"--set {path}: {parent} is already {inner!r}, which has no fields"
            raise RequestFailedError(reason, code="bad_option")
        place = inner
    place[last] = value


def read_object(path: Path) -> dict[str, Any]:
    """Reads a request from a file.

    Args:
        path: Of a file with one JSON object.

    Returns:
        The object.

    Raises:
        RequestFailedError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"Cannot read {path}: {error.strerror}"
        raise RequestFailedError(reason, code="unreadable_file") from error
    except ValueError as error:
        raise RequestFailedError(f"{path} is no JSON: {error}", code="unreadable_file") from error
    if not isinstance(found, dict):
        raise RequestFailedError(f"{path} holds no JSON object", code="unreadable_file")
    return found
