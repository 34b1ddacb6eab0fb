"""How long a reference may be: as long as the longest that is given out, wherever it is sent."""

from pydantic import TypeAdapter

from app.openai.schemas.shared import Model
from app.schemas.shared import MAX_REFERENCE_CHARS
from app.services.origins import name_of
from core.db.models import Checkpoint, Job
from core.ids import new_id
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
