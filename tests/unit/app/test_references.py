"""How long a reference may be: as long as the longest that is given out, wherever it is sent."""

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.openai.schemas.fine_tuning import JobRequest
from app.openai.schemas.shared import Model
from app.schemas.exchange import MergeRequest
from app.schemas.shared import MAX_REFERENCE_CHARS
from app.services.origins import name_of
from core.db.models import Checkpoint, Job
from core.ids import new_id
from peft_engine.configs import JobSpec
from peft_engine.configs.base import MAX_BASE_NAME_CHARS


def test_the_longest_name_of_a_checkpoint_may_be_asked() -> None:
    job = Job(
        id=new_id("job"),
        base_model="b" * MAX_BASE_NAME_CHARS,
        tenant_id=new_id("ten"),
        adapter_name="a" * 64,
    )
    name = name_of(job, Checkpoint(step=10**10 - 1))
    assert TypeAdapter(Model).validate_python(name) == name
    assert 200 < len(name) <= MAX_REFERENCE_CHARS


@pytest.mark.parametrize("wrong", ["", "d" * 65, "ds 1", "ds\0"])
@pytest.mark.parametrize(
    ("schema", "field", "rest"),
    [
        (JobSpec, "dataset_id", {"base_model": "minilm"}),
        (MergeRequest, "dataset_id", {"name": "m", "adapters": [{"adapter_id": "a"}]}),
        (JobRequest, "training_file", {"model": "minilm"}),
    ],
)
def test_a_data_set_is_named_alike_everywhere(
    schema: type[BaseModel], field: str, rest: dict[str, Any], wrong: str
) -> None:
    schema.model_validate(rest | {field: new_id("ds")})
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(rest | {field: wrong})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]
