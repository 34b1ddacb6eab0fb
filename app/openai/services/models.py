"""Everything that can be named as ``model``: base models, adapters, aliases."""

import asyncio
from collections.abc import Iterator

from app.openai.schemas.models import ModelCard, ModelCards, OwnModelFields
from app.openai.services.moments import unix_seconds
from app.openai.services.targets import is_base
from app.schemas.models import ModelAnswer
from app.services import models
from app.services.origins import find_checkpoint
from app.services.parts import Parts
from core.db import Session, adapters, aliases, checkpoints
from core.db.models import Adapter
from core.errors import BadInput, NotFound
from core.ids import is_checkpoint

MAX_ADAPTERS = 1000
"""One answer has no pages for the official client; a chat's menu needs no more."""

_OWNER_OF_BASES = "tunery"


async def list_cards(parts: Parts, tenant_id: str) -> ModelCards:
    """List what can be asked.

    Args:
        parts: Which base models there are, and the database.
        tenant_id: Whose adapters.

    Returns:
        Bases, then of each adapter its name (of the newest version), its aliases and
        ``name@version``.
    """
    bases = [_of_base(base) for base in (await models.list_models(parts, tenant_id)).data]
    named, has_more = await asyncio.to_thread(_list_adapters, parts, tenant_id)
    return ModelCards(data=[*bases, *named], has_more=has_more)


def _list_adapters(parts: Parts, tenant_id: str) -> tuple[list[ModelCard], bool]:
    with parts.database.read() as session:
        page = adapters.list_page(session, tenant_id, limit=MAX_ADAPTERS)
        known = aliases.names_of(session, tenant_id, [row.id for row in page.items])
        seen: set[str] = set()
        cards = []
        for row in page.items:
            cards += [
                _of_adapter(name, row) for name in _names_of(row, known.get(row.id, []), seen)
            ]
    return cards, page.has_more


def _names_of(row: Adapter, alias_names: list[str], seen: set[str]) -> Iterator[str]:
    # newest first: the first of a name is the one that the name means
    if row.name not in seen:
        seen.add(row.name)
        yield row.name
    yield from alias_names
    yield f"{row.name}@{row.version}"


async def get_card(parts: Parts, tenant_id: str, model: str) -> ModelCard:
    """Describe one of them.

    Args:
        parts: Which base models there are, and the database.
        tenant_id: Who asks.
        model: A base, an adapter by id, name, ``name@version`` or alias, or a checkpoint.

    Returns:
        Its card, under the id that was asked for.
    """
    if is_base(parts.settings, model):
        base = _of_base(await models.get_model(parts, tenant_id, model))
        return base.model_copy(update={"id": model})
    return await asyncio.to_thread(_get_adapter, parts, tenant_id, model)


def _get_adapter(parts: Parts, tenant_id: str, model: str) -> ModelCard:
    with parts.database.read() as session:
        if is_checkpoint(model):
            return _of_checkpoint(session, tenant_id, model)
        return _of_adapter(model, adapters.resolve(session, tenant_id, model))


def refuse_deletion(parts: Parts, model: str) -> None:
    """Refuse to delete what is no adapter.

    Args:
        parts: Which base models there are.
        model: As it was sent.

    Raises:
        BadInput: It is a base model, or reads like a checkpoint.
    """
    if is_checkpoint(model):
        raise BadInput(
            f"{model!r} is a checkpoint, which goes away with its job; adapters are deleted here",
            code="unsupported",
            param="model",
        )
    if is_base(parts.settings, model):
        raise BadInput(
            f"{model!r} is a base model, which the settings of the service name; adapters are "
            "deleted here",
            code="unsupported",
            param="model",
        )


def missing(model: str) -> NotFound:
    """Say that nothing of this name can be asked.

    Args:
        model: As it was sent.

    Returns:
        The error.
    """
    return NotFound(
        f"there is no model {model[:100]!r}; GET /v1/models lists what can be asked",
        code="model_not_found",
        param="model",
    )


def _of_base(base: ModelAnswer) -> ModelCard:
    return ModelCard(
        id=base.id,
        created=0,
        owned_by=_OWNER_OF_BASES,
        x_tunery=OwnModelFields(
            kind="base",
            base_model=base.id,
            tasks=base.tasks,
            digest=base.fingerprint,
            ready=base.ready,
        ),
    )


def _of_checkpoint(session: Session, tenant_id: str, model: str) -> ModelCard:
    found = find_checkpoint(session, tenant_id, model)
    row = checkpoints.find(session, tenant_id, found.id)
    return ModelCard(
        id=model,
        created=0 if row is None else unix_seconds(row.created_at),
        owned_by=tenant_id,
        x_tunery=OwnModelFields(
            kind="checkpoint",
            base_model=found.base_model,
            task=found.task,
            adapter_id=found.id,
            job_id=found.job_id,
            step=found.step,
            digest=found.digest,
        ),
    )


def _of_adapter(name: str, row: Adapter) -> ModelCard:
    return ModelCard(
        id=name,
        created=unix_seconds(row.created_at),
        owned_by=row.tenant_id,
        x_tunery=OwnModelFields(
            kind="adapter",
            base_model=row.base_model,
            task=row.task,
            adapter_id=row.id,
            reference=f"{row.name}@{row.version}",
            digest=row.digest,
        ),
    )
