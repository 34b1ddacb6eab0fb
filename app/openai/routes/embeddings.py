"""``POST /v1/embeddings``."""

from fastapi import APIRouter, Request

from app import asking
from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.openai.routes.documented import asking_answers, body_examples
from app.openai.routes.refusing import refusing
from app.openai.schemas.embeddings import EmbeddingList, EmbeddingRequest
from app.openai.services.embeddings import as_list, read_request

router = APIRouter(prefix="/v1/embeddings", tags=["openai"], route_class=GuardedRoute)


@router.post(
    "",
    summary="Embed texts",
    response_model=EmbeddingList,
    openapi_extra=body_examples(
        two=("Two texts", {"model": "minilm", "input": ["my card is lost", "where is my card"]}),
    ),
    responses=asking_answers(),
)
async def create_embeddings(
    body: EmbeddingRequest, request: Request, caller: Predictor, parts: PartsDep
) -> EmbeddingList:
    """Give the feature of each text by an encoder, alone or with an adapter in force."""
    with refusing("input", is_list=not isinstance(body.input, str)):
        planned = await asking.plan(parts, caller, read_request(parts.settings, body))
        found = await asking.predict(parts, caller, planned, request)
    return as_list(body, planned, found)
