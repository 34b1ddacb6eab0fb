"""Base models: what the settings name, and what the inference process knows of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.schemas.models import ModelAnswer, ModelList
from app.services.replicas import Replicas
from core.errors import NotFound, ServiceError
from core.settings import Settings


async def list_models(settings: Settings, inference: Replicas) -> ModelList:
    """List the base models; works while the inference process is down, and says so.

    Args:
        settings: Which base models there are.
        inference: Who knows more about them.

    Returns:
        All of them.
    """
    try:
        described: Sequence[Mapping[str, Any]] | None = await inference.bases()
    except ServiceError:
        described = None
    known = {str(base.get("name")): base for base in described or ()}
    rows = [
        _as_answer(name, reference, known.get(name, {}))
        for name, reference in sorted(settings.base_models.items())
    ]
    return ModelList(
        data=rows,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
        inference="down" if described is None else "up",
    )


async def get_model(settings: Settings, inference: Replicas, name: str) -> ModelAnswer:
    """Describe one base model.

    Args:
        settings: Which base models there are.
        inference: Who knows more about them.
        name: Which one.

    Returns:
        What is known of it.

    Raises:
        NotFound: There is none of this name.
    """
    if name in settings.base_models:
        found = await list_models(settings, inference)
        return next(model for model in found.data if model.id == name)
    raise NotFound(
        f"there is no base model {name[:100]!r}; GET /models lists them", code="base_not_found"
    )


def _as_answer(name: str, reference: str, base: Mapping[str, Any]) -> ModelAnswer:
    return ModelAnswer(
        id=name,
        reference=reference,
        architecture=base.get("architecture"),
        tasks=base.get("tasks"),
        parameters=base.get("parameters"),
        fingerprint=base.get("fingerprint"),
        precision=base.get("precision"),
        licence=base.get("licence"),
        max_length=base.get("max_length"),
        ready=bool(base.get("ready", False)),
    )
