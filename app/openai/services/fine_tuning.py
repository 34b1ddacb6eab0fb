"""A wish to fine-tune, in the words of ``POST /jobs``."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from app.openai.schemas.fine_tuning import JobRequest
from app.openai.services.models import missing
from app.openai.services.refusals import MODEL_CODES
from app.openai.services.targets import is_base
from app.schemas.shared import refusal_of
from core.db import Session, adapters
from core.errors import BadInput, NotFound, ServiceError
from core.settings import Settings
from peft_engine.configs import JobSpec
from peft_engine.errors import EngineError

_FIELDS: Mapping[str, str] = MappingProxyType(
    {"dataset_id": "training_file", "base_model": "model", "metadata": "metadata"}
)
"""Fields of a request, by those of ``POST /jobs``; all others stand in ``x_tunery``."""

_PARENT = "parent_adapter_id"
_HYPERPARAMETERS = "method.supervised.hyperparameters"


def read_request(
    session: Session, settings: Settings, *, tenant_id: str, dataset_id: str, body: JobRequest
) -> JobSpec:
    """Say it in the words of ``POST /jobs``.

    Args:
        session: To find an adapter with that is named as model.
        settings: Which bases there are.
        tenant_id: Who asks.
        dataset_id: What to train on.
        body: The request.

    Returns:
        The native request; what was left out is left out there too.
    """
    own = body.x_tunery.model_dump(mode="json", exclude_unset=True)
    base_model, parent_id = _find_model(session, settings, tenant_id, body.model)
    parent = _agree([("model", parent_id), ("x_tunery.parent_adapter_id", own.get(_PARENT))])
    name = _agree([("suffix", body.suffix), ("x_tunery.adapter_name", own.get("adapter_name"))])
    asked = own | {
        "dataset_id": dataset_id,
        "base_model": base_model,
        "training": own.get("training", {}) | _training(body, own.get("training", {})),
        "metadata": body.metadata or {},
    }
    asked |= {} if parent is None else {_PARENT: parent}
    asked |= {} if name is None else {"adapter_name": name}
    try:
        return JobSpec.model_validate(asked)
    except ValidationError as error:
        refusal = refusal_of(error, under="x_tunery")
        raise refusal from error


def as_refusal(error: ServiceError | EngineError) -> ServiceError:
    """Translate what the native services raise.

    Args:
        error: With ``param`` as ``POST /jobs`` would have it.

    Returns:
        The same error with the request's own field and the code that programs know.
    """
    if isinstance(error, EngineError):
        found: ServiceError = BadInput(error.message)
    else:
        found = copy.copy(error)
    found.code = MODEL_CODES.get(error.code, error.code)
    found.param = None if error.param is None else _field_of(error.param)
    if found.details is not None:
        found.details = [
            {**problem, "param": _field_of(problem["param"])} if "param" in problem else problem
            for problem in found.details
        ]
    return found


def _field_of(param: str) -> str:
    head = param.partition(".")[0]
    if head == "Idempotency-Key":
        return param
    if head in _FIELDS:
        return _FIELDS[head] + param[len(head) :]
    return f"x_tunery.{param}"


def _find_model(
    session: Session, settings: Settings, tenant_id: str, model: str
) -> tuple[str, str | None]:
    """The base, and the adapter to continue from; ``NotFound`` when it is neither."""
    if is_base(settings, model):
        return model, None
    try:
        found = adapters.resolve(session, tenant_id, model)
    except NotFound as error:
        told = missing(model)
        raise told from error
    return found.base_model, found.id


def _training(body: JobRequest, own: Mapping[str, Any]) -> dict[str, Any]:
    new, old = body.method.supervised.hyperparameters, body.hyperparameters
    seed = body.seed if "seed" in body.model_fields_set else None
    claims: dict[str, list[tuple[str, Any]]] = {
        "batch_size": [
            (f"{_HYPERPARAMETERS}.batch_size", new.batch_size),
            ("hyperparameters.batch_size", old.batch_size),
        ],
        "epochs": [
            (f"{_HYPERPARAMETERS}.n_epochs", new.n_epochs),
            ("hyperparameters.n_epochs", old.n_epochs),
        ],
        "seed": [("seed", seed)],
    }
    found = {
        field: _agree([*said, (f"x_tunery.training.{field}", own.get(field))])
        for field, said in claims.items()
    }
    return {field: value for field, value in found.items() if value is not None}


def _agree(claims: Sequence[tuple[str, Any]]) -> Any:
    """What the places say that say anything.

    Raises:
        BadInput: They say several things.
    """
    said = [claim for claim in claims if claim[1] not in (None, "auto")]
    for param, value in said[1:]:
        if value != said[0][1]:
            raise BadInput(
                f"{said[0][0]} and {param} ask for two things; leave one out", param=said[0][0]
            )
    return said[0][1] if said else None
