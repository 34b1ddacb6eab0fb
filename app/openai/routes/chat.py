"""``POST /v1/chat/completions``."""

from typing import Any

from fastapi import APIRouter, Request

from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.openai.routes.documented import body_examples, text_answers
from app.openai.routes.writing import write
from app.openai.schemas.chat import ChatCompletion, ChatRequest
from app.openai.services.chat import ChatForm

router = APIRouter(prefix="/v1/chat", tags=["openai"], route_class=GuardedRoute)

_TURN = {"role": "user", "content": "name[Aromi], food[Chinese]"}
_CHUNK = '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Aromi"}}]}'


@router.post(
    "/completions",
    summary="Answer a conversation",
    response_model=ChatCompletion,
    openapi_extra=body_examples(
        plain=("An adapter", {"model": "menu-texts", "messages": [_TURN]}),
        stream=(
            "The plain base, streamed, with the usage at the end",
            {
                "model": "smollm2",
                "messages": [{"role": "system", "content": "Be brief."}, _TURN],
                "max_completion_tokens": 40,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
    ),
    responses=text_answers(_CHUNK),
)
async def create_chat_completion(
    body: ChatRequest, request: Request, caller: Predictor, parts: PartsDep
) -> Any:
    """Go on with a conversation, by a base model or by an adapter for text generation.

    Adapters and bases are mixed in one batch, as in `POST /predict`. `system_fingerprint` and
    `x_receipt` tell which weights answered. What this service does not have (tools, formats other
    than text, biases of tokens, …) is refused by name (`unsupported`), unless it asks for nothing.
    """
    return await write(ChatForm(), body, request, caller, parts)
