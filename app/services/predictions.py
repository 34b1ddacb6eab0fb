"""Plan a prediction: which adapter answers which row, with the tenant checked for every one.

A row never falls back to the plain base: an adapter that is not found is an error with the row's
place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.schemas.predictions import PredictOptions, PredictRequest
from app.schemas.shared import MAX_REFERENCE_CHARS, refusal_of, walk_texts
from app.services.known_adapters import KnownAdapters
from app.services.origins import Origin, find_checkpoint, of_adapter
from core.db import Session, adapters, nodes
from core.errors import BadInput, NotFound, TooLarge
from core.ids import is_checkpoint
from core.settings import Settings
from peft_engine.configs.base import join_base_name, parent_name, split_base_name

_OWN_KEYS = frozenset({"adapter_id", "base_model", "options"})
"""What an input may say about itself, beside its record."""

EMBEDDING = "embedding"
"""The one task that every row of a call may be asked for, whatever its adapter was trained for."""

MAX_LABELS = 1000
"""As many as ``options.labels`` takes."""

MAX_OPTION_CHARS = 8_000_000
"""Of a call's options in all its rows together: each row is sent with its own. A thousand labels of
thirty characters for as many rows as a call may have; with what JSON makes of them well below what
the inference process reads."""


@dataclass(frozen=True)
class _AskedRow:
    """One input with what holds for it, its own words first.

    Attributes:
        record: The input proper.
        adapter_id: A reference, or None for the plain base.
        base_model: As asked, if at all.
        options: As asked for this row alone; None when the call's options hold.
        where: Path of what the row says about itself, with a dot; empty when the call says it.
    """

    record: Any
    adapter_id: str | None
    base_model: str | None
    options: dict[str, Any] | None
    where: str


@dataclass(frozen=True)
class _Target:
    """Who answers: an adapter or a checkpoint, or the plain base when ``delta`` is None.

    Attributes:
        base_model: Name of the base.
        task: What is asked of it.
        delta: Its delta, as the inference process names it.
        origin: The adapter or checkpoint and how the reference led to it.
        defaults: Options that hold unless they are sent.
    """

    base_model: str
    task: str | None
    delta: dict[str, str] | None
    origin: Origin | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A call whose references mean something: what is asked, and how each row came to its answer.

    Attributes:
        rows: Rows of the internal request: all inputs in order, then all of them again for each
            comparison.
        origins: Aligned with the rows; None for the plain base.
        inputs: How many inputs there are.
        compare: The references to compare with, as sent; None when that was not asked.
    """

    rows: list[dict[str, Any]]
    origins: list[Origin | None]
    inputs: int
    compare: tuple[str | None, ...] | None


def plan_rows(
    session: Session | None,
    *,
    settings: Settings,
    known: KnownAdapters,
    tenant_id: str,
    request: PredictRequest,
) -> Planned:
    """Resolve the adapters of all rows; an alias that is moved later changes nothing for them.

    Args:
        session: To read with; None plans from what is known.
        settings: Limits and the known base models.
        known: Adapters that were looked up a moment ago.
        tenant_id: Whose adapters may be named.
        request: What was asked.

    Returns:
        What to ask the inference process.

    Raises:
        NeedsDatabase: There is no session, and not all is known.
    """  # noqa: DOC502  raised by the resolver
    _check_size(request, settings)
    resolver = _Resolver(session, settings, known, tenant_id, request)
    common = _as_sent(request.options)
    asked = [_read_row(index, given, request) for index, given in enumerate(request.inputs)]
    targets = [(row, resolver.find(row)) for row in asked]
    for place, reference in enumerate(request.compare or ()):
        targets += [(row, resolver.find_beside(row, reference, place)) for row in asked]
    rows = []
    for number, (row, target) in enumerate(targets):
        own = row.options
        if number >= len(asked):
            # in a comparison a row's own options, too, are for those who can take them
            own = None if own is None else _applying(own, target)
        options = _applying(common, target) if own is None else own
        rows.append(
            {
                "input": row.record,
                "task": target.task,
                "base_model": target.base_model,
                "delta": target.delta,
                "options": {**target.defaults, **options},
            }
        )
    _check_used(common, rows)
    origins = [target.origin for _, target in targets]
    return Planned(rows, origins, len(asked), request.compare)


class NeedsDatabase(Exception):
    """A call cannot be planned from what is known."""


class _Resolver:
    """Finds who answers a row; looks each reference up once."""

    def __init__(
        self,
        session: Session | None,
        settings: Settings,
        known: KnownAdapters,
        tenant_id: str,
        request: PredictRequest,
    ) -> None:
        self._session = session
        self._settings = settings
        self._known = known
        self._moment = known.moment
        self._tenant_id = tenant_id
        self._request = request
        self._found: dict[str, Origin] = {}

    def find(self, asked: _AskedRow) -> _Target:
        if asked.adapter_id is None:
            return self._find_base(asked)
        origin = self._find_adapter(asked.adapter_id, f"{asked.where}adapter_id")
        if asked.base_model not in {None, origin.base_model}:
            raise BadInput(
                f"the adapter {asked.adapter_id!r} was trained on {origin.base_model!r}, "
                f"not on {asked.base_model!r}",
                code="base_mismatch",
                param=f"{asked.where}base_model",
            )
        return self._target_of(origin)

    def find_beside(self, asked: _AskedRow, reference: str | None, place: int) -> _Target:
        """Find who answers a row in a comparison."""
        if reference is not None:
            return self._target_of(self._find_adapter(reference, f"compare.{place}"))
        own = self.find(asked)
        if own.origin is None:
            return own
        embeds = self._request.task == EMBEDDING
        defaults = {} if embeds else self._zero_shot(own.origin)
        return _Target(own.base_model, self._request.task, None, defaults=defaults)

    def _zero_shot(self, origin: Origin) -> Mapping[str, Any]:
        """Labels to choose among, so that a plain encoder answers what its classifier answers."""
        labels = origin.labels or []
        if origin.task != "text-classification" or not 2 <= len(labels) <= MAX_LABELS:
            return {}
        families = {
            base.get("architecture")
            for node in nodes.list_live(self._reading())
            for base in node.bases
            if base.get("name") == parent_name(origin.base_model)
        }
        return {"labels": labels} if families == {"encoder"} else {}

    def _find_base(self, asked: _AskedRow) -> _Target:
        name = asked.base_model
        if name is None and self._request.adapter_id is not None:
            # the comparison of a call's adapter with its own base
            name = self._find_adapter(self._request.adapter_id, "adapter_id").base_model
        if name is None:
            raise BadInput(
                "a row without an adapter needs base_model; GET /models lists them",
                code="base_model_required",
                param=f"{asked.where}base_model",
            )
        try:
            parent, derivation = split_base_name(name)
        except ValueError as error:
            raise _no_base(name, asked, f"{error}") from error
        if parent not in self._settings.base_models:
            raise _no_base(name, asked, "GET /models lists them")
        return _Target(join_base_name(parent, derivation), self._request.task, None)

    def _find_adapter(self, reference: str, param: str) -> Origin:
        if reference not in self._found:
            self._found[reference] = self._look_up(reference, param)
        return self._found[reference]

    def _look_up(self, reference: str, param: str) -> Origin:
        if is_checkpoint(reference):
            try:
                return find_checkpoint(self._reading(), self._tenant_id, reference)
            except NotFound as error:
                error.param = param
                raise
        found = self._known.find(self._tenant_id, reference)
        if found is None:
            try:
                found = adapters.resolve_traced(self._reading(), self._tenant_id, reference)
            except NotFound as error:
                raise NotFound(
                    f"there is no adapter {reference!r}; GET /adapters lists yours",
                    code="adapter_not_found",
                    param=param,
                ) from error
            self._known.remember(self._tenant_id, reference, found, moment=self._moment)
        return of_adapter(found)

    def _reading(self) -> Session:
        if self._session is None:
            raise NeedsDatabase
        return self._session

    def _target_of(self, origin: Origin) -> _Target:
        delta = {"adapter_id": origin.id, "digest": origin.digest, "key": origin.key}
        # an adapter does what it was trained for; an embedding needs no training of its own
        task = EMBEDDING if self._request.task == EMBEDDING else origin.task
        return _Target(origin.base_model, task, delta, origin)


def _no_base(name: str, asked: _AskedRow, why: str) -> NotFound:
    return NotFound(
        f"there is no base model {name!r}; {why}",
        code="base_not_found",
        param=f"{asked.where}base_model",
    )


def _read_row(index: int, given: Any, request: PredictRequest) -> _AskedRow:
    place = f"inputs.{index}"
    _check_strings(given, place)
    if not isinstance(given, dict) or not _OWN_KEYS & given.keys():
        return _AskedRow(given, request.adapter_id, request.base_model, None, "")
    record: Any = {key: value for key, value in given.items() if key not in _OWN_KEYS}
    if record.keys() == {"input"}:
        record = record["input"]
    adapter_id = given.get("adapter_id", request.adapter_id)
    base_model = given.get("base_model", request.base_model)
    _check_reference(adapter_id, f"{place}.adapter_id")
    _check_reference(base_model, f"{place}.base_model")
    options = None
    if given.get("options") is not None:
        options = _read_options(given["options"], place)
    return _AskedRow(record, adapter_id, base_model, options, f"{place}.")


def _read_options(given: Any, place: str) -> dict[str, Any]:
    try:
        return _as_sent(PredictOptions.model_validate(given))
    except ValidationError as error:
        raise refusal_of(error, under=f"{place}.options") from error


def _as_sent(options: PredictOptions) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude_none=True, exclude={"stream"})


def _applying(common: dict[str, Any], target: _Target) -> dict[str, Any]:
    # one call may mix kinds: an option of the call is for the rows that can take it
    if target.delta is None:
        return common
    if target.task == "text-generation":
        return {name: value for name, value in common.items() if name != "labels"}
    return {}


def _check_used(common: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    used = {name for row in rows for name in row["options"]}
    for name in common:
        if name not in used:
            raise BadInput(
                f"no row of this call takes the option {name!r}", param=f"options.{name}"
            )


def _check_size(request: PredictRequest, settings: Settings) -> None:
    times = 1 + len(request.compare or ())
    rows = len(request.inputs) * times
    param = "inputs" if times == 1 else "compare"
    if rows > settings.max_predict_rows:
        what = "inputs" if times == 1 else "rows (each input once more for each comparison)"
        raise BadInput(
            f"{rows} {what} in one call; {settings.max_predict_rows} are allowed, split the call",
            code="too_many_rows",
            param=param,
        )
    chars = times * sum(len(text) for _, text in walk_texts(request.inputs))
    if chars > settings.max_predict_chars:
        raise TooLarge(
            f"the inputs have {chars} characters; {settings.max_predict_chars} are allowed in one "
            "call",
            param=param,
        )
    _check_options(request.options, rows=rows)
    for place, reference in enumerate(request.compare or ()):
        _check_reference(reference, f"compare.{place}")


def _check_options(options: PredictOptions, *, rows: int) -> None:
    chars = sum(len(text) for _, text in walk_texts(_as_sent(options)))
    if chars * rows > MAX_OPTION_CHARS:
        raise TooLarge(
            f"the options have {chars} characters, for {rows} rows {chars * rows}; "
            f"{MAX_OPTION_CHARS} are allowed in one call, split the call",
            param="options",
        )


def _check_reference(value: Any, param: str) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not 0 < len(value) <= MAX_REFERENCE_CHARS or "\0" in value:
        raise BadInput(
            f"{param} must be a text of 1 to {MAX_REFERENCE_CHARS} characters or null", param=param
        )


def _check_strings(value: Any, param: str) -> None:
    # before a tokenizer falls over it, and with its place
    for where, text in walk_texts(value, param):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{where} holds half of a surrogate pair, which is not a character", param=where
            ) from error
