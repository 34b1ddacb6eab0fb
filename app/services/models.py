"""Base models: as the settings name them, derived, and as inference processes know them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from app.schemas.models import ModelAnswer, ModelList
from app.services.parts import Parts
from core.db import adapters
from core.errors import NotFound, ServiceError
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import join_base_name, parent_name, split_base_name


async def list_models(parts: Parts, tenant_id: str) -> ModelList:
    """List the base models; works while the inference process is down, and says so.

    Args:
        parts: Which base models there are, and who knows more about them.
        tenant_id: Whose adapters name derived bases.

    Returns:
        Those of the settings, then those derived from them that are loaded somewhere or that an
        adapter of the tenant was trained on.
    """
    try:
        described: Sequence[Mapping[str, Any]] | None = await parts.inference.bases()
    except ServiceError:
        described = None
    trained = await asyncio.to_thread(_trained_on, parts, tenant_id)
    loaded = {str(base.get("name")): base for base in described or ()}
    known = parts.settings.base_models
    derived = {name for name in (*trained, *loaded) if "@" in name and parent_name(name) in known}
    rows = [
        _as_answer(name, known[parent_name(name)], _about(name, loaded, trained))
        for name in (*sorted(known), *sorted(derived))
    ]
    return ModelList(
        data=rows,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
        inference="down" if described is None else "up",
    )


async def get_model(parts: Parts, tenant_id: str, name: str) -> ModelAnswer:
    """Describe one base model.

    Args:
        parts: Which base models there are, and who knows more about them.
        tenant_id: Whose adapters name derived bases.
        name: Which one; a derived one need not have been made yet.

    Returns:
        What is known of it.

    Raises:
        NotFound: There is none of this name.
    """
    try:
        parent, derivation = split_base_name(name)
    except ValueError:
        parent, derivation = "", BaseConfig()
    found = {model.id: model for model in (await list_models(parts, tenant_id)).data}
    model = found.get(join_base_name(parent, derivation))
    if model is not None:
        return model
    pruning = derivation.pruning
    if parent in found and (pruning is None or not pruning.looks_at_rows):
        known = {parent: found[parent].model_dump()}
        whole = join_base_name(parent, derivation)
        return _as_answer(whole, found[parent].reference, _about(whole, known, {}))
    raise NotFound(
        f"there is no base model {name[:100]!r}; GET /models lists them", code="base_not_found"
    )


def _trained_on(parts: Parts, tenant_id: str) -> Mapping[str, str]:
    """Fingerprint by name of the derived bases of the tenant's adapters."""
    with parts.database.read() as session:
        return adapters.derived_bases(session, tenant_id)


def _about(
    name: str, loaded: Mapping[str, Mapping[str, Any]], trained: Mapping[str, str]
) -> Mapping[str, Any]:
    """What is known of a base; of a derived one that is loaded nowhere what its parent tells."""
    if name in loaded or "@" not in name:
        return loaded.get(name, {})
    parent = loaded.get(parent_name(name), {})
    alike = ("architecture", "tasks", "licence", "max_length")
    return {key: parent.get(key) for key in alike} | {"fingerprint": trained.get(name)}


def _as_answer(name: str, reference: str, base: Mapping[str, Any]) -> ModelAnswer:
    parent, derivation = split_base_name(name)
    return ModelAnswer(
        id=name,
        reference=reference,
        parent=parent if derivation.is_derived else None,
        base=derivation,
        architecture=base.get("architecture"),
        tasks=base.get("tasks"),
        parameters=base.get("parameters"),
        fingerprint=base.get("fingerprint"),
        bytes=base.get("bytes"),
        precision=base.get("precision"),
        precision_reason=base.get("precision_reason"),
        licence=base.get("licence"),
        max_length=base.get("max_length"),
        ready=bool(base.get("ready", False)),
    )
