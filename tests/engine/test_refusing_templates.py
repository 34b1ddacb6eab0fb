"""A chat template that refuses a conversation: told in its own words, to whoever asked."""

from pathlib import Path
from typing import Any

import pytest

from core.error_codes import ERROR_CODES
from peft_engine.bases.base import Base, load_base
from peft_engine.errors import DataError, RowError
from peft_engine.serving import Row, prepare_row
from tests.engine.test_training import job, run
from tests.tiny_bases import CHAT_TEMPLATE, write_tiny_llama

REFUSAL = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)
ASKED: list[dict[str, str]] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "my card"},
]
ROWS = [{"messages": [*ASKED, {"role": "assistant", "content": "lost"}]} for _ in range(4)]


@pytest.fixture(scope="module")
def strict(models_dir: Path) -> Base:
    """As Gemma's: no system role."""
    folder = write_tiny_llama(models_dir / "strict-llama")
    (folder / "chat_template.jinja").write_text(REFUSAL + CHAT_TEMPLATE)
    return load_base(str(folder), name="strict", models_dir=models_dir)


def test_training_is_told(strict: Base) -> None:
    splits: dict[str, Any] = {"train": ROWS, "validation": [], "test": []}
    with pytest.raises(DataError, match="System role not supported") as caught:
        run(strict, job("text-generation", max_steps=1), splits)
    assert (caught.value.code, caught.value.param) == ("template_refused", "dataset_id")
    assert ERROR_CODES[caught.value.code].status == 400


def test_a_prediction_is_told(strict: Base) -> None:
    with pytest.raises(RowError, match="System role not supported") as caught:
        prepare_row(strict, Row(None, {"messages": ASKED}))
    assert (caught.value.code, caught.value.param) == ("template_refused", "input")
    assert prepare_row(strict, Row(None, {"messages": ASKED[1:]})).input_tokens > 0
