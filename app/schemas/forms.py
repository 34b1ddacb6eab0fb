"""What the description says of a body that is a form, which no model describes."""

from collections.abc import Mapping
from typing import Any

TEXT: Mapping[str, Any] = {"type": "string"}
FILE: Mapping[str, Any] = {"type": "string", "format": "binary"}


def described(schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """Say what a field is for.

    Args:
        schema: ``TEXT`` or ``FILE``.
        description: For people.

    Returns:
        The field.
    """
    return {**schema, "description": description}


def form_body(
    fields: Mapping[str, Mapping[str, Any]],
    *,
    required: tuple[str, ...] = ("file",),
    or_json: str | None = None,
) -> dict[str, Any]:
    """Document a form.

    Args:
        fields: Schema by name; there are no others.
        required: Names of those that must be there.
        or_json: Name of the model of a JSON body that is taken as well.

    Returns:
        What OpenAPI has as ``requestBody``.
    """
    schema = {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": {name: dict(field) for name, field in fields.items()},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    if or_json is not None:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{or_json}"}}
    return {"required": True, "content": content}
