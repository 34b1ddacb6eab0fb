"""How predictions are shown: outputs and receipts in order, comparisons beside them."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from app.schemas.predictions import ComparedAnswer, PredictAnswer, Receipt, Usage
from app.services.origins import CheckpointNotFound, Origin
from app.services.predictions import Planned
from core.errors import ServiceError

_PLACE = re.compile(r"inputs\.(\d+)\b")


def as_answer(planned: Planned, found: dict[str, Any]) -> PredictAnswer:
    """Shape what the inference process gave.

    Args:
        planned: What was asked.
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The same with the common receipt, if there is one.
    """
    receipts = [
        as_receipt(receipt, origin)
        for receipt, origin in zip(found["receipts"], planned.origins, strict=True)
    ]
    count = planned.inputs
    compared = None
    if planned.compare is not None:
        compared = [
            ComparedAnswer(
                adapter_id=reference,
                outputs=found["outputs"][start : start + count],
                receipt=_common(receipts[start : start + count]),
                receipts=receipts[start : start + count],
            )
            for reference, start in zip(
                planned.compare, range(count, len(receipts), count), strict=True
            )
        ]
    return PredictAnswer(
        outputs=found["outputs"][:count],
        receipt=_common(receipts[:count]),
        receipts=receipts[:count],
        comparison=compared,
        usage=Usage.model_validate(found["usage"], extra="ignore"),
    )


def locate(planned: Planned, error: ServiceError) -> ServiceError:
    """Give an error the place in the request that its row came from.

    Args:
        planned: What was asked.
        error: The inference process's, whose ``param`` counts the rows of comparisons too.

    Returns:
        The error as the caller can understand it.
    """
    place = _PLACE.match(error.param or "")
    if place is None:
        return error
    located = _of_origin(error, planned.origins[int(place[1])])
    if int(place[1]) < planned.inputs:
        return located
    column, row = divmod(int(place[1]), planned.inputs)
    located = copy.copy(located)
    located.param = f"compare.{column - 1}"
    located.message = f"{located.message} (input {row})"
    return located


def _of_origin(error: ServiceError, origin: Origin | None) -> ServiceError:
    """A checkpoint whose weights are gone: pruned after the call was planned, or lost."""
    if origin is None or origin.job_id is None or error.code != "object_not_found":
        return error
    return CheckpointNotFound(
        f"the weights of checkpoint {origin.id} (step {origin.step} of job {origin.job_id}) are "
        "not in storage any more: it was pruned just now, or its object is lost; ask another of "
        f"GET /jobs/{origin.job_id}/checkpoints",
        param=error.param,
    )


def _common(receipts: Sequence[Receipt]) -> Receipt | None:
    return receipts[0] if all(receipt == receipts[0] for receipt in receipts) else None


def as_receipt(receipt: dict[str, Any], origin: Origin | None) -> Receipt:
    """A receipt with what the caller's reference meant.

    Args:
        receipt: The inference process's.
        origin: Who answered and how the reference led to it; None for the plain base.

    Returns:
        The receipt as it is sent.
    """
    if origin is None:
        return Receipt.model_validate(receipt, extra="ignore")
    came = {
        "adapter": origin.name if origin.job_id is None else None,
        "job_id": origin.job_id,
        "step": origin.step,
        "alias": origin.alias,
        "alias_revision": origin.revision,
    }
    return Receipt.model_validate({**receipt, **came}, extra="ignore")
