"""Plan a prediction: which adapter answers which row, with the tenant checked for every one.

A row never falls back to the plain base: an adapter that is not found is an error with the row's
place.
"""

from dataclasses import dataclass
from typing import Any

from app.schemas.predictions import PredictAnswer, PredictRequest, Receipt, Usage
from app.schemas.shared import walk_texts
from core.db import Session, adapters
from core.errors import BadInput, NotFound, TooLarge
from core.settings import Settings


@dataclass(frozen=True)
class Target:
    """Who answers: an adapter, or the plain base when ``delta`` is None."""

    base_model: str
    task: str | None
    delta: dict[str, str] | None


def plan_rows(
    session: Session, *, settings: Settings, tenant_id: str, request: PredictRequest
) -> list[dict[str, Any]]:
    """Resolve the adapters of all rows.

    Args:
        session: To read with.
        settings: Limits and the known base models.
        tenant_id: Whose adapters may be named.
        request: What was asked.

    Returns:
        One row of the internal request each, in the order of the inputs.
    """
    _check_size(request, settings)
    resolve = _Resolver(session, settings, tenant_id, request)
    options = request.options.model_dump(exclude_none=True)
    rows = []
    for index, given in enumerate(request.inputs):
        target, record = resolve(index, given)
        rows.append(
            {
                "input": record,
                "task": target.task,
                "base_model": target.base_model,
                "delta": target.delta,
                "options": options,
            }
        )
    return rows


def as_answer(found: dict[str, Any]) -> PredictAnswer:
    """Shape what the inference process gave.

    Args:
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The same with the common receipt, if there is one.
    """
    receipts = [Receipt.model_validate(receipt, extra="ignore") for receipt in found["receipts"]]
    common = receipts[0] if all(receipt == receipts[0] for receipt in receipts) else None
    return PredictAnswer(
        outputs=found["outputs"],
        receipt=common,
        receipts=receipts,
        usage=Usage.model_validate(found["usage"], extra="ignore"),
    )


class _Resolver:
    """Finds the target of a row; looks each reference up once."""

    def __init__(
        self, session: Session, settings: Settings, tenant_id: str, request: PredictRequest
    ) -> None:
        self._session = session
        self._settings = settings
        self._tenant_id = tenant_id
        self._request = request
        self._found: dict[tuple[str | None, str | None], Target] = {}

    def __call__(self, index: int, given: Any) -> tuple[Target, Any]:
        request = self._request
        reference, base_model, record = request.adapter_id, request.base_model, given
        where = ""
        if isinstance(given, dict) and {"adapter_id", "base_model"} & given.keys():
            record = {
                key: value
                for key, value in given.items()
                if key not in {"adapter_id", "base_model"}
            }
            if record.keys() == {"input"}:
                record = record["input"]
            where = f"inputs.{index}."
            reference = given.get("adapter_id", reference)
            base_model = given.get("base_model", base_model)
            _check_text(reference, f"{where}adapter_id")
            _check_text(base_model, f"{where}base_model")
        _check_strings(record, f"inputs.{index}")
        key = (reference, base_model)
        if key not in self._found:
            self._found[key] = (
                self._find_base(base_model, where)
                if reference is None
                else self._find_adapter(reference, base_model, where)
            )
        return self._found[key], record

    def _find_base(self, base_model: str | None, where: str) -> Target:
        if base_model is None:
            raise BadInput(
                "a row without an adapter needs base_model; GET /models lists them",
                code="base_model_required",
                param=f"{where}base_model",
            )
        if base_model not in self._settings.base_models:
            raise NotFound(
                f"there is no base model {base_model!r}; GET /models lists them",
                code="base_not_found",
                param=f"{where}base_model",
            )
        return Target(base_model, self._request.task, None)

    def _find_adapter(self, reference: str, base_model: str | None, where: str) -> Target:
        try:
            adapter = adapters.resolve(self._session, self._tenant_id, reference)
        except NotFound as error:
            raise NotFound(
                f"there is no adapter {reference!r}; GET /adapters lists yours",
                code="adapter_not_found",
                param=f"{where}adapter_id",
            ) from error
        if base_model is not None and base_model != adapter.base_model:
            raise BadInput(
                f"the adapter {reference!r} was trained on {adapter.base_model!r}, "
                f"not on {base_model!r}",
                code="base_mismatch",
                param=f"{where}base_model",
            )
        delta = {"adapter_id": adapter.id, "digest": adapter.digest, "key": adapter.key}
        return Target(adapter.base_model, adapter.task, delta)


def _check_size(request: PredictRequest, settings: Settings) -> None:
    if len(request.inputs) > settings.max_predict_rows:
        raise BadInput(
            f"{len(request.inputs)} inputs in one call; {settings.max_predict_rows} are allowed, "
            "split the call",
            code="too_many_rows",
            param="inputs",
        )
    chars = sum(len(text) for _, text in walk_texts(request.inputs))
    if chars > settings.max_predict_chars:
        raise TooLarge(
            f"the inputs have {chars} characters; {settings.max_predict_chars} are allowed in one "
            "call",
            param="inputs",
        )


def _check_text(value: Any, param: str) -> None:
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 200):
        raise BadInput(f"{param} must be a text of 1 to 200 characters or null", param=param)
    if value is not None:
        _check_strings(value, param)
        if "\0" in value:
            raise BadInput(f"{param} holds U+0000", param=param)


def _check_strings(value: Any, param: str) -> None:
    # before a tokenizer falls over it, and with its place
    for where, text in walk_texts(value, param):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{where} holds half of a surrogate pair, which is not a character", param=where
            ) from error
