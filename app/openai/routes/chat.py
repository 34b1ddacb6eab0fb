"""``POST /v1/chat/completions``."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from app import asking
from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.openai.routes.documented import body_examples, text_answers
from app.openai.routes.refusing import refusing
from app.openai.schemas.chat import ChatCompletion, ChatRequest
from app.openai.services.chat import ChatForm, as_completion, read_request
from app.openai.services.chunks import as_events
from app.openai.services.targets import require_task
from app.openai.services.texts import TASK, Asked

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
    with refusing(ChatForm.field):
        native, seed = read_request(parts.settings, body)
        planned = await asking.plan(parts, caller, native)
        require_task(planned, TASK)
        asked = Asked.of("chatcmpl", body, planned, seed)
        if body.stream:
            events = await asking.stream(parts, caller, planned)
            return StreamingResponse(
                as_events(asked, ChatForm(), events, is_list=False),
                media_type="text/event-stream",
                headers=asking.STREAM_HEADERS,
            )
        found = await asking.predict(parts, caller, planned, request)
    return as_completion(asked, found)
