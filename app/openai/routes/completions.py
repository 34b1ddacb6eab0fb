"""``POST /v1/completions``."""

from typing import Any

from fastapi import APIRouter, Request

from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.openai.routes.documented import body_examples, text_answers
from app.openai.routes.writing import write
from app.openai.schemas.completions import Completion, CompletionRequest
from app.openai.services.completions import CompletionForm

router = APIRouter(prefix="/v1/completions", tags=["openai"], route_class=GuardedRoute)

_PROMPTS = ["name[Aromi], food[Chinese]", "name[Bibimbap House], food[English]"]


@router.post(
    "",
    summary="Answer prompts",
    response_model=Completion,
    openapi_extra=body_examples(
        several=(
            "Two prompts in one batch",
            {"model": "menu-texts@2", "prompt": _PROMPTS, "max_tokens": 40, "temperature": 0},
        ),
    ),
    responses=text_answers('{"object":"text_completion","choices":[{"index":0,"text":"Aromi"}]}'),
)
async def create_completion(
    body: CompletionRequest, request: Request, caller: Predictor, parts: PartsDep
) -> Any:
    """Answer one prompt or several, by a base model or by an adapter for text generation.

    A prompt is rendered as `prompt` of a training record is, so that an adapter reads what it was
    trained on. Choices come in the order of the prompts, `n` for each.
    """
    is_list = not isinstance(body.prompt, str)
    return await write(CompletionForm(), body, request, caller, parts, is_list=is_list)
