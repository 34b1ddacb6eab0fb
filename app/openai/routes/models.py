"""``/v1/models``."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from app.dependencies import GuardedRoute, PartsDep, Reader, UnitDep, Writer
from app.openai.routes.refusing import naming
from app.openai.schemas.models import ModelCard, ModelCards
from app.openai.services import models as service
from app.schemas.errors import error_answers
from app.schemas.shared import Deleted
from app.services import adapters

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=GuardedRoute)

# the client writes a slash as %2F, which is decoded before a route is chosen
Model = Annotated[str, Path(pattern=r"^[\x21-\x7e]{1,300}$", examples=["menu-texts"])]


@router.get(
    "",
    summary="List what can be asked",
    response_model=ModelCards,
    responses=error_answers(),
)
async def list_cards(caller: Reader, parts: PartsDep) -> ModelCards:
    """List base models, then your adapters: names, `name@version` and aliases are ids of their own.

    The newest 1000 adapters are listed; `has_more` tells whether there are older ones.
    """
    return await service.list_cards(parts, caller.tenant_id)


@router.get(
    "/{model:path}",
    summary="Get what can be asked",
    response_model=ModelCard,
    responses=error_answers("model_not_found"),
)
async def get_card(model: Model, caller: Reader, parts: PartsDep) -> ModelCard:
    """Show a base model, an adapter by id, name, `name@version` or alias, or a checkpoint.

    Checkpoints go away, so they are not listed; a job's list of them has their names.
    """
    with naming(model):
        return await service.get_card(parts, caller.tenant_id, model)


async def _refuse(model: Model, caller: Writer, parts: PartsDep) -> None:
    # a dependency of its own: no transaction is open while other processes are asked
    service.refuse_deletion(parts, model)
    with naming(model):
        await adapters.refuse_while_answering(parts, tenant_id=caller.tenant_id, reference=model)


@router.delete(
    "/{model:path}",
    summary="Delete an adapter by its model id",
    response_model=Deleted,
    responses=error_answers(
        "unsupported", "model_not_found", "adapter_in_use", "inference_unavailable"
    ),
    dependencies=[Depends(_refuse)],
)
def delete_card(model: Model, caller: Writer, unit: UnitDep, parts: PartsDep) -> Deleted:
    """Delete one adapter, as `DELETE /adapters/{id}` does; a name means its newest version.

    Refused while an alias points to it, while a job that continues from it has not ended, or while
    requests that name it wait or run. Base models are not deleted, and checkpoints go with their
    job.
    """
    with naming(model):
        adapters.delete(unit, parts, tenant_id=caller.tenant_id, reference=model)
    return Deleted(id=model, object="model")
