"""What an upload form says, checked: its fields as a request, its one necessary file."""

import json
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.schemas.shared import refusal_of
from app.services.multipart import Form, ReceivedFile
from core.errors import BadInput

_Request = TypeVar("_Request", bound=BaseModel)


def read_fields(model: type[_Request], form: Form, *, json_fields: Collection[str]) -> _Request:
    """Read the fields of a form.

    Args:
        model: What they should be. An empty field is one that was not sent.
        form: The whole form.
        json_fields: Names of the fields that hold JSON; all others are text.

    Returns:
        The request.

    Raises:
        BadInput: A field is unknown, malformed or missing; all of them are in ``details``.
    """  # noqa: DOC501, DOC502  made by refusal_of
    asked = {
        name: _parse_json(name, text) if name in json_fields else text
        for name, text in form.fields.items()
        if text != ""
    }
    try:
        return model.model_validate(asked)
    except ValidationError as error:
        raise refusal_of(error) from error


def require_file(form: Form, field: str, *, what: str) -> ReceivedFile:
    """The file without which a form is of no use.

    Args:
        form: The whole form.
        field: Name of its part.
        what: What it holds, for the error.

    Returns:
        The file.

    Raises:
        BadInput: There is none.
    """
    if field not in form.files:
        raise BadInput(
            f"the form has no {field}; send the {what} in a part named {field}",
            code="missing_field",
            param=field,
        )
    return form.files[field]


def _parse_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"the field {name} must hold JSON", code="invalid_json", param=name
        ) from error
