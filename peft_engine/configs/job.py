"""A job specification, exactly as ``POST /jobs`` takes it."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from peft_engine.configs.base import BaseConfig, join_base_name, split_base_name
from peft_engine.configs.methods import (
    METHOD_NAMES,
    SOLITARY_METHODS,
    LoraConfig,
    MethodConfig,
)
from peft_engine.configs.model import Config, TaskName
from peft_engine.configs.training import TrainingConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
AdapterReference = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$", max_length=74)
]
"""Id, name (its newest version), ``name@version`` or alias of an adapter."""
DatasetId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
MetadataValue = Annotated[str, Field(max_length=512)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]


class JobSpec(Config):
    """What to train, on what, how. Everything but the data set and the base has a default."""

    dataset_id: DatasetId = Field(description="A data set that is `ready`.")
    base_model: str = Field(
        max_length=256,
        description="Name of a base model of GET /models. Of a derived base such as `minilm@int8` "
        "what follows the `@` is read into `base`.",
    )
    task: TaskName | None = Field(None, description="null: the task of the data set.")
    method: tuple[MethodConfig, ...] = Field(
        (LoraConfig(),),
        min_length=1,
        max_length=len(METHOD_NAMES),
        description='A name (`"lora"`), an object with `type`, or a list of them: a combination. '
        "Beside `parent_adapter_id` it may be left out: it is the parent's.",
    )
    base: BaseConfig = BaseConfig()
    training: TrainingConfig = TrainingConfig()
    parent_adapter_id: AdapterReference | None = Field(
        None,
        description="Continue from this adapter: id, name (its newest version now), "
        "`name@version` or alias. The job takes over its method, head, labels and length.",
    )
    adapter_name: Name | None = Field(
        None, description="Name of the adapter; null: derived from the data set and the base."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Yours; returned as it is."
    )
    allow_leakage: bool = Field(
        False, description="Train although rows of the test split stand in the training split."
    )
    evaluate_test: bool = Field(
        True,
        description="false: leave the test split alone, for a job among which one is chosen on "
        "validation. Its metrics then have no `test`, and its adapter passes no gate.",
    )
    auto_start: bool = Field(
        True,
        description="false: check everything, then wait (`paused`) for `POST /jobs/{id}:start`.",
    )

    @property
    def base_name(self) -> str:
        """Name of the base that is trained on, derived or not."""
        return join_base_name(self.base_model, self.base)

    @model_validator(mode="before")
    @classmethod
    def _split_base(cls, data: Any) -> Any:
        """Read the name of a derived base into its parent and ``base``.

        Args:
            data: As sent.

        Returns:
            The same with the parent's name, where a derived base is named.

        Raises:
            ValueError: The name means nothing, or ``base`` says something else.
        """
        name = data.get("base_model") if isinstance(data, dict) else None
        if not isinstance(name, str) or "@" not in name:
            return data
        parent, derivation = split_base_name(name)
        if "base" in data and BaseConfig.model_validate(data["base"]) != derivation:
            raise ValueError(f"base_model {name!r} and base ask for two things; leave one out")
        return {**data, "base_model": parent, "base": derivation}

    @field_validator("method", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Accept a name or one object where a list is meant.

        Args:
            value: A name, an object, a configuration, or a list of any of these.

        Returns:
            A list of objects or configurations.

        Raises:
            ValueError: A method that the engine does not offer.
        """
        items = value if isinstance(value, list | tuple) else [value]
        methods: list[Any] = []
        for item in items:
            method = {"type": item} if isinstance(item, str) else item
            if isinstance(method, dict):
                method = {"type": "lora"} | method
            if isinstance(method, dict) and method["type"] not in METHOD_NAMES:
                offered = ", ".join(METHOD_NAMES)
                raise ValueError(f"method {method['type']!r} is not offered; offered: {offered}")
            methods.append(method)
        return methods

    @field_validator("method")
    @classmethod
    def _combine(cls, methods: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        """Refuse combinations that mean nothing.

        Args:
            methods: At least one.

        Returns:
            The same.

        Raises:
            ValueError: A method twice, or one that leaves nothing to add beside another.
        """
        names = [method.type for method in methods]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"method {name!r} stands twice in the list")
            if name in SOLITARY_METHODS and len(names) > 1:
                raise ValueError(f"method {name!r} cannot be combined with another")
        return methods
