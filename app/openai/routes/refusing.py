"""A route's errors, in the words of its own request."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.openai.services.models import missing
from app.openai.services.refusals import as_refusal
from core.errors import NotFound, ServiceError


@contextmanager
def refusing(field: str, *, is_list: bool = False) -> Iterator[None]:
    """Translate what the native services raise.

    Args:
        field: Which field the rows were made of.
        is_list: Whether the field holds a list of which each entry was a row.

    Yields:
        Once; a ``ServiceError`` is translated on its way out.
    """
    try:
        yield
    except ServiceError as error:
        told = as_refusal(error, field=field, is_list=is_list)
        raise told from error


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Say of whatever is not found that there is no such model.

    Args:
        model: As it was sent.

    Yields:
        Once; ``NotFound`` is translated on its way out.
    """
    try:
        yield
    except NotFound as error:
        told = missing(model)
        if error.code == "checkpoint_not_found":
            told.message = error.message  # says what became of it
        raise told from error


@contextmanager
def renaming(fields: Mapping[str, str]) -> Iterator[None]:
    """Name a field as the route's own request has it.

    Args:
        fields: The route's fields, by those of the native services.

    Yields:
        Once; a ``ServiceError`` that names one of them is translated on its way out.
    """
    try:
        yield
    except ServiceError as error:
        told = copy.copy(error)
        told.param = fields.get(error.param or "", error.param)
        raise told from error
