"""What ``POST /v1/fine_tuning/jobs`` takes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from app.openai.schemas.shared import Model, NotOffered, NullIsDefault
from app.schemas.shared import MAX_REFERENCE_CHARS, NAME_PATTERN, Text
from peft_engine.configs import BaseConfig, TrainingConfig
from peft_engine.configs.job import DatasetId
from peft_engine.configs.model import TaskName
from peft_engine.configs.training import BatchRows, Epochs

_ONLY_SUPERVISED = "jobs are supervised"
_FILE = "Id of a file, or of a data set of `POST /datasets`."

FileId = DatasetId
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]


class Hyperparameters(NullIsDefault):
    """`auto`: what `auto` is for `POST /jobs`, and shown as soon as it is resolved."""

    batch_size: Literal["auto"] | BatchRows = "auto"
    n_epochs: Literal["auto"] | Epochs = "auto"
    learning_rate_multiplier: Literal["auto"] | float = Field(
        "auto",
        description="`auto` or 1: rates are chosen by method, base and rows, and are not "
        "multiplied. Set `x_tunery.training.learning_rate` to choose one.",
    )

    @field_validator("learning_rate_multiplier")
    @classmethod
    def _is_one(cls, value: Literal["auto"] | float) -> Literal["auto"] | float:
        if value not in ("auto", 1):
            raise PydanticCustomError(
                "unsupported",
                "not offered here: rates are not multiplied; set x_tunery.training.learning_rate",
            )
        return value


class Supervised(NullIsDefault):
    """Settings of supervised training."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(NullIsDefault):
    """How to learn from the rows."""

    type: Annotated[Any, NotOffered(_ONLY_SUPERVISED, ("supervised",))] = "supervised"
    supervised: Supervised = Supervised()
    dpo: Annotated[Any, NotOffered(_ONLY_SUPERVISED)] = None
    reinforcement: Annotated[Any, NotOffered(_ONLY_SUPERVISED)] = None


class OwnJobFields(NullIsDefault):
    """Fields of `POST /jobs` that OpenAI does not have; see there what each takes."""

    task: TaskName | None = None
    method: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        None,
        description='A name (`"lora"`), an object with `type`, or a list of them.',
        examples=[{"type": "lora", "r": 8}],
    )
    base: BaseConfig = BaseConfig()
    training: TrainingConfig = TrainingConfig()
    parent_adapter_id: Text | None = Field(
        None, max_length=MAX_REFERENCE_CHARS, description="Or name the adapter as `model`."
    )
    adapter_name: Text | None = Field(None, max_length=64, description="Or send it as `suffix`.")
    allow_leakage: bool = False
    auto_start: bool = Field(
        True, description="false: check everything, then wait (`paused`) for `…/resume`."
    )
    evaluate_test: bool = Field(True, description="false: the test split is not even read.")


class JobRequest(NullIsDefault):
    """A fine-tuning job."""

    model: Model = Field(
        description="A base model, or an adapter to continue from (id, name, `name@version` or "
        "alias).",
        examples=["smollm2"],
    )
    training_file: FileId = Field(
        description=_FILE + " The job waits until it is `processed`.",
        examples=["ds_06f1k2m3n4p5q6r7s8t9v0w1x2"],
    )
    validation_file: FileId | None = Field(
        None,
        description=_FILE + " Both files must be `processed`; the step that is best on its rows is "
        "kept. A data set with splits of its own needs none.",
    )
    suffix: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="Name of the adapter, of which the job makes the next version; null: taken "
        "from the file's name and the base's.",
        examples=["menu-texts"],
    )
    seed: int = Field(0, ge=0, le=2**31 - 1)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        None, max_length=16, examples=[{"team": "care"}]
    )
    method: Method = Method()
    hyperparameters: Hyperparameters = Field(
        Hyperparameters(), description="Old place of `method.supervised.hyperparameters`."
    )
    integrations: Annotated[Any, NotOffered("the curves are in GET /jobs/{id}/metrics", ([],))] = (
        None
    )
    x_tunery: OwnJobFields = OwnJobFields()
