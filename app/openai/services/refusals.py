"""Errors of the native services, in the words of a request under ``/v1``."""

import copy
import re
from collections.abc import Mapping
from types import MappingProxyType

from core.errors import ServiceError

MODEL_CODES: Mapping[str, str] = MappingProxyType(
    {
        "adapter_not_found": "model_not_found",
        "base_not_found": "model_not_found",
        "checkpoint_not_found": "model_not_found",
    }
)
"""Codes that programs know from OpenAI, by ours, of a model that is not there."""

_CODES: Mapping[str, str] = MappingProxyType({**MODEL_CODES, "too_long": "context_length_exceeded"})
"""And of a row that is too long."""

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "adapter_id": "model",
        "base_model": "model",
        "task": "model",
        "max_new_tokens": "max_tokens",
        "top_k": "x_tunery.top_k",
        "repetition_penalty": "x_tunery.repetition_penalty",
    }
)
"""Fields of a request, by those of ``/predict``; the others have the same name."""

_PLACE = re.compile(r"^inputs(?:\.(?P<row>\d+))?(?:\.(?P<rest>.+))?$")


def as_refusal(error: ServiceError, *, field: str, is_list: bool) -> ServiceError:
    """Translate an error.

    Args:
        error: With ``param`` as a request to ``/predict`` would have it.
        field: Which field the rows were made of.
        is_list: Whether the field holds a list of which each entry was a row.

    Returns:
        The same error with the request's own field and the code that programs know.
    """
    found = copy.copy(error)
    found.code = _CODES.get(error.code, error.code)
    found.param = _field_of(error.param, field, is_list=is_list)
    if found.code == "model_not_found":
        found.param = "model"
    if found.code == "model_not_found" and error.code != "checkpoint_not_found":
        found.message = f"{error.message.partition(';')[0]}; GET /v1/models lists what can be asked"
    return found


def _field_of(param: str | None, field: str, *, is_list: bool) -> str | None:
    if param is None:
        return None
    place = _PLACE.match(param)
    if place is None:
        own = param.removeprefix("options.")
        return _FIELDS.get(own, own)
    row, rest = place["row"], place["rest"] or ""
    head = rest.partition(".")[0]
    if head == "options" or head in _FIELDS:
        own = rest.removeprefix("options.")
        return _FIELDS.get(own, own)
    if head == field:  # the record has the field's own name
        return rest
    where = field if row is None or not is_list else f"{field}.{row}"
    return f"{where}.{rest}" if rest else where
