"""Which arithmetic an inference process answers in."""

import pytest

from core.settings import Settings
from inference.served import loader_of
from peft_engine import runtime


@pytest.mark.parametrize(
    ("changes", "precision"),
    [({}, "fp32"), ({"inference_precision": "bf16"}, "bf16")],
)
def test_bases_are_served_in_fp32_unless_told_otherwise(
    settings: Settings,
    changes: dict[str, str],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What `auto` would make bf16 for: any base is large, and the processor has native products.
    monkeypatch.setattr(runtime, "SMALL_MODEL_PARAMETERS", 0)
    own = settings.model_copy(update=changes)
    base = loader_of(own).load("llama", settings.base_models["llama"])
    assert base.precision == precision
