"""What the api sends to an inference process and gets back. Internal: users see ``app.schemas``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.shares import background_of
from peft_engine.configs.base import MAX_BASE_NAME_CHARS
from peft_engine.configs.merge import MergeSpec
from peft_engine.configs.model import TaskName

# A day-long wait helps nobody: the longest generation ends far below this.
MAX_TIMEOUT_SECONDS = 600.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeltaIn(_Strict):
    """Which stored delta answers the row."""

    adapter_id: str = Field(min_length=1, max_length=128)
    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    key: str = Field(min_length=1, max_length=512)


class RowIn(_Strict):
    """One row; rows of one call may name different adapters, bases and tasks."""

    input: Any
    base_model: str = Field(min_length=1, max_length=MAX_BASE_NAME_CHARS)
    task: str | None = Field(default=None, max_length=64)
    delta: DeltaIn | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class PredictIn(_Strict):
    """Body of ``POST /predict``."""

    rows: list[RowIn] = Field(min_length=1)
    tenant: str = Field(
        default="", max_length=64, description="Whose share of the queue they take."
    )
    background: bool = Field(
        default=False, description="Nobody waits for them: they take a small share of their own."
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] | None = None

    @property
    def share(self) -> str:
        """By which name their tokens are counted."""
        return background_of(self.tenant) if self.background else self.tenant


class PreviewIn(_Strict):
    """Body of ``POST /preview``."""

    base_model: str = Field(min_length=1, max_length=MAX_BASE_NAME_CHARS)
    task: TaskName
    records: list[dict[str, Any]] = Field(min_length=1)
    max_length: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"


class PreviewOut(_Strict):
    """Records as training would read them; see ``peft_engine.training.preview``."""

    base_model: str
    base_fingerprint: str
    template_digest: str
    max_length: int
    records: list[list[dict[str, Any]]]


class Receipt(_Strict):
    """Proof of what answered a row, read from the weights that did."""

    adapter_id: str | None
    adapter_digest: str | None
    base_model: str
    base_fingerprint: str
    template_digest: str
    engine: str


class Usage(_Strict):
    """Tokens of all rows together."""

    input_tokens: int
    output_tokens: int


class PredictOut(_Strict):
    """Answer of ``POST /predict``; lists are in the order of the rows."""

    outputs: list[dict[str, Any]]
    receipts: list[Receipt]
    usage: Usage


class ImportIn(_Strict):
    """Body of ``POST /exchange/import``: an archive that the api has put into storage."""

    key: str = Field(min_length=1, max_length=512)
    base_model: str | None = Field(default=None, max_length=MAX_BASE_NAME_CHARS)
    labels: list[str] | None = Field(default=None, max_length=10_000)
    multi_label: bool | None = None
    max_length: int | None = Field(default=None, ge=1)


class ImportOut(_Strict):
    """Answer of ``POST /exchange/import``: a stored delta that no row names yet."""

    digest: str
    key: str
    bytes: int
    parameters: int
    base_model: str
    base_fingerprint: str
    template_digest: str
    task: str
    methods: list[dict[str, Any]]
    labels: list[str] | None
    origin: dict[str, Any]


class MergeIn(_Strict):
    """Body of ``POST /exchange/merge``; answered like an import."""

    deltas: list[DeltaIn] = Field(min_length=1, max_length=16)
    weights: list[float] = Field(min_length=1, max_length=16)
    base_model: str = Field(min_length=1, max_length=MAX_BASE_NAME_CHARS)
    spec: MergeSpec
    rows_key: str | None = Field(default=None, max_length=512)


class ExportIn(_Strict):
    """Body of ``POST /exchange/export``."""

    delta: DeltaIn
    base_model: str = Field(min_length=1, max_length=MAX_BASE_NAME_CHARS)
    format: Literal["peft", "peft-portable", "adapterhub", "merged", "gguf"]
    head: Literal["keep", "leave-out"] = "keep"


class UseOut(_Strict):
    """Answer of ``GET /uses/{adapter_id}``: requests that wait for the adapter or run on it."""

    adapter_id: str
    requests: int


class BaseOut(_Strict):
    """One base model of this process; ``null`` until it is known."""

    name: str
    reference: str
    state: str
    ready: bool
    error: str | None
    parent: str | None = Field(None, description="Base that it is derived from.")
    parent_fingerprint: str | None = None
    architecture: str | None
    tasks: list[str] | None
    parameters: int | None
    fingerprint: str | None
    precision: str | None
    device: str | None
    licence: str | None
    max_length: int | None
    bytes: int | None
    load_seconds: float | None
    kernel: str | None = None
    """By which products texts are written; ``general``: those of the base's own modules."""
    precision_reason: str | None = None
    """Why it is served in its precision."""
    mixes_adapters: bool | None = None
    """Whether encoder rows of different adapters share a forward."""
