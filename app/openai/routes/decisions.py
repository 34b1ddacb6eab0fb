"""``POST /v1/decisions``."""

from fastapi import APIRouter, Request

from app import asking
from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.openai.routes.documented import asking_answers, body_examples
from app.openai.routes.refusing import refusing
from app.openai.schemas.decision_answers import Decision
from app.openai.schemas.decisions import DecisionRequest
from app.openai.services.decision_answers import as_decision
from app.openai.services.decisions import explain, put_questions, read_request, writes
from core.errors import ServiceError

router = APIRouter(prefix="/v1/decisions", tags=["openai"], route_class=GuardedRoute)

_TEXT = "My card has not arrived"
_INTENTS = [{"value": "card_arrival"}, {"value": "lost_or_stolen_card"}]
_URGENCY = [{"label": "low"}, {"label": "high", "description": "somebody waits for money"}]


@router.post(
    "",
    summary="Answer questions about a text",
    response_model=Decision,
    openapi_extra=body_examples(
        classifier=(
            "A classifier, among two of its labels",
            {
                "model": "support-intents",
                "input": _TEXT,
                "questions": [
                    {"type": "choice", "name": "intent", "instructions": "", "choices": _INTENTS}
                ],
            },
        ),
        base=(
            "A base model, asked in words",
            {
                "model": "smollm2",
                "input": _TEXT,
                "questions": [
                    {"type": "predicate", "instructions": "The customer is waiting for something."},
                    {"type": "score", "instructions": "How urgent is it?", "levels": _URGENCY},
                ],
            },
        ),
    ),
    responses=asking_answers(),
)
async def create_decision(
    body: DecisionRequest, request: Request, caller: Predictor, parts: PartsDep
) -> Decision:
    """Answer questions about one input, each with probabilities; nothing is drawn.

    A model that writes is asked in words, and each answer has the probability with which it would
    be written. A classifier knows its labels only: choices and levels must be among them, and a
    predicate names one. A regression answers scores whose levels are numbers.
    """
    with refusing("input"):
        planned = await asking.plan(parts, caller, read_request(parts.settings, body))
        planned = put_questions(parts.settings, planned, body)
    is_list = writes(planned)
    with refusing("questions" if is_list else "input", is_list=is_list):
        try:
            found = await asking.predict(parts, caller, planned, request)
        except ServiceError as error:
            explained = explain(error)
            raise explained from error
    return as_decision(body, planned, found)
