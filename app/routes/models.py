"""``/models``: base models on which jobs can train."""

from fastapi import APIRouter

from app.dependencies import GuardedRoute, PartsDep, Reader
from app.schemas.errors import error_answers
from app.schemas.models import ModelAnswer, ModelList
from app.services import models as service

router = APIRouter(prefix="/models", tags=["models"], route_class=GuardedRoute)


@router.get("", summary="List base models", response_model=ModelList, responses=error_answers())
async def list_models(caller: Reader, parts: PartsDep) -> ModelList:
    """List every base model, and the bases that were derived from them.

    While the inference process is down, only what the settings say is known.
    """
    return await service.list_models(parts, caller.tenant_id)


@router.get(
    "/{model_id:path}",
    summary="Get a base model",
    response_model=ModelAnswer,
    responses=error_answers("base_not_found"),
)
async def get_model(model_id: str, caller: Reader, parts: PartsDep) -> ModelAnswer:
    """Show one base model."""
    return await service.get_model(parts, caller.tenant_id, model_id)
