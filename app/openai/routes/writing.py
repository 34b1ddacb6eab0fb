"""How every route that gives texts asks and answers, whatever shape its texts have."""

from typing import Any

from fastapi import Request
from starlette.responses import StreamingResponse

from app import asking
from app.openai.routes.refusing import refusing
from app.openai.schemas.shared import TextRequest
from app.openai.services.chunks import Form, as_events
from app.openai.services.targets import require_task
from app.openai.services.texts import TASK, Asked
from app.services.callers import Caller
from app.services.parts import Parts


async def write(
    form: Form,
    body: TextRequest,
    request: Request,
    caller: Caller,
    parts: Parts,
    *,
    is_list: bool = False,
) -> Any:
    """Ask for texts and shape them.

    Args:
        form: How the route reads requests and shows texts.
        body: The request.
        request: When its client goes away, the rows are dropped.
        caller: Whose adapters may be named.
        parts: Who answers.
        is_list: Whether the request holds a list of which each entry is a row.

    Returns:
        The whole answer, or a stream of events.
    """
    with refusing(form.field, is_list=is_list):
        native, seed = form.read(parts.settings, body)
        planned = await asking.plan(parts, caller, native)
        require_task(planned, TASK)
        asked = Asked.of(form.kind, body, planned, seed)
        if body.stream:
            events = await asking.stream(parts, caller, planned)
            return StreamingResponse(
                as_events(asked, form, events, is_list=is_list),
                media_type="text/event-stream",
                headers=asking.STREAM_HEADERS,
            )
        found = await asking.predict(parts, caller, planned, request)
    return form.whole(asked, found)
