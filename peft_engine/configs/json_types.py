"""Numbers and truth values are what JSON calls so: ``true`` is no number, ``"8"`` is a text.

Pydantic by itself reads ``true`` as 1, ``"8"`` as 8 and ``1`` as true. Its own strictness of a
whole class is no help, since that refuses a list for a tuple and an object for a class, too.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import core_schema

_NO_TYPES = frozenset({"default", "metadata", "serialization"})
"""Parts of a schema that say nothing of what is taken."""


def only_json_types(schema: Any) -> Any:
    """Make a schema strict about each number and truth value in it, and about nothing else.

    Args:
        schema: Pydantic's own, or a part of one. Keys of objects are numbers in no field of ours.

    Returns:
        A copy; of a schema that is strict already it says the same.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(only_json_types(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in ("bool", "float", "int"):
        return _strict(schema)
    # by name of a field, where one is called `type`: all of these are schemas
    is_schema = isinstance(kind, str)
    return {
        name: part if is_schema and name in _NO_TYPES else only_json_types(part)
        for name, part in schema.items()
    }


def _strict(schema: Mapping[str, Any]) -> Any:
    strict: Any = {**schema, "strict": True}
    if schema["type"] != "int" or schema.get("strict"):
        return strict
    return core_schema.no_info_before_validator_function(_as_whole, strict)


def _as_whole(value: Any) -> Any:
    # JSON has one kind of number: 8.0 is as whole as 8
    return int(value) if isinstance(value, float) and value.is_integer() else value
