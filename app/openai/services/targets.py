"""Who is meant by ``model``, and what is told of who answered."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.schemas.predictions import PredictRequest, Receipt
from app.schemas.shared import refusal_of
from app.services.prediction_answers import as_receipt
from app.services.predictions import Planned
from core.errors import BadInput
from core.settings import Settings
from peft_engine.configs.base import MAX_BASE_NAME_CHARS, split_base_name

_SHOWN_DIGITS = 12
"""Of a digest in a fingerprint: 48 bits tell a tenant's adapters apart, and it stays readable."""

SEEDS = 2**63
"""Seeds that there are; behind the last comes the first."""
_DRAWN_SEEDS = 2**31
"""Seeds that are drawn: short enough for every language's integers."""


def is_base(settings: Settings, model: str) -> bool:
    """Whether a name means a base model, as published or derived.

    Args:
        settings: Which bases there are.
        model: As it was sent. An adapter of the same name is still reached by ``name@version``.

    Returns:
        True for a base.
    """
    if len(model) > MAX_BASE_NAME_CHARS:
        return False
    try:
        return split_base_name(model)[0] in settings.base_models
    except ValueError:
        return False


def as_request(
    settings: Settings,
    *,
    model: str,
    task: str,
    inputs: list[Any],
    options: Sequence[Mapping[str, Any]] | None = None,
) -> PredictRequest:
    """Say it in the words of ``/predict``.

    Args:
        settings: Which bases there are.
        model: As it was sent.
        task: What is asked of a base.
        inputs: One record a row.
        options: Of each row.

    Returns:
        The native request.
    """
    base = is_base(settings, model)
    body: dict[str, Any] = {"base_model": model} if base else {"adapter_id": model}
    if base or task == "embedding":
        body["task"] = task
    rows = inputs
    if options is not None and len(inputs) <= settings.max_predict_rows:  # more are refused
        # in each row: options of a call are dropped where an adapter takes none
        rows = [
            {**(row if isinstance(row, dict) else {"input": row}), "options": dict(own)}
            for row, own in zip(inputs, options, strict=True)
        ]
    try:
        return PredictRequest.model_validate(body | {"inputs": rows})
    except ValidationError as error:
        refusal = refusal_of(error)
        raise refusal from error


def require_task(planned: Planned, task: str) -> None:
    """Refuse an adapter that was trained for something else.

    Args:
        planned: The rows, all of one model.
        task: What the route gives.

    Raises:
        BadInput: It does something else.
    """
    own = planned.rows[0]["task"]
    if own != task:
        raise BadInput(
            f"this adapter was trained for {own}, not for {task}; ask it by POST /predict",
            code="task_mismatch",
            param="model",
        )


def draw_seed(temperature: float, seed: int | None) -> int | None:
    """Choose the start of a request's random numbers.

    Args:
        temperature: At 0 nothing is drawn.
        seed: As it was sent.

    Returns:
        The seed, or None where there is nothing to draw.
    """
    if temperature == 0:
        return None
    return secrets.randbelow(_DRAWN_SEEDS) if seed is None else seed


def name_of(planned: Planned) -> str:
    """Name who answers.

    Args:
        planned: The rows, all of one model.

    Returns:
        ``name@version``, the whole name of a checkpoint, or the name of the base.
    """
    origin = planned.origins[0]
    return str(planned.rows[0]["base_model"]) if origin is None else origin.name


def receipt_of(planned: Planned, receipt: dict[str, Any]) -> Receipt:
    """Shape the receipt of a row.

    Args:
        planned: The rows, all of one model.
        receipt: The inference process's.

    Returns:
        The receipt as it is sent.
    """
    return as_receipt(receipt, planned.origins[0])


def fingerprint_of(receipt: Receipt) -> str:
    """Say in short what produced an answer.

    Args:
        receipt: Of the answer.

    Returns:
        ``fp_<base>`` or ``fp_<base>_<adapter>``.
    """
    digests = (receipt.base_fingerprint, receipt.adapter_digest)
    return "_".join(
        ["fp", *(digest.rpartition(":")[2][:_SHOWN_DIGITS] for digest in digests if digest)]
    )
