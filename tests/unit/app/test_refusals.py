"""What errors of the native services are called under ``/v1``."""

import pytest

from app.openai.services.refusals import as_refusal
from app.services.inference import input_path
from core.errors import Unavailable


@pytest.mark.parametrize(
    ("place", "param"),
    [
        ("rows.1.base_model", "model"),
        ("rows.1.adapter_id", "model"),
        ("rows.1.input", "input.1"),
        ("rows.1", "input.1"),
    ],
)
def test_what_is_at_fault_is_named_as_the_request_has_it(place: str, param: str) -> None:
    error = Unavailable("away", code="base_unavailable", param=input_path(place))
    told = as_refusal(error, field="input", is_list=True)
    assert (told.code, told.param) == ("base_unavailable", param)
