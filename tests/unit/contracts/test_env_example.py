"""`.env.example` and the settings say the same."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.settings import ENV_PREFIX, Settings

EXAMPLE = Path(__file__).parents[3] / ".env.example"
# Its default stands in the data directory or is built of other settings; the comment says so.
DERIVED = {
    "database_url",
    "storage_url",
    "inference_url",
    "models_dir",
    "vllm_adapters_dir",
    "webhooks_may_be_private",
}


def read_example() -> dict[str, str]:
    entries = {}
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"#{ENV_PREFIX}"):
            name, _, value = line[1:].partition("=")
            entries[name.removeprefix(ENV_PREFIX).lower()] = "".join(shlex.split(value))
    return entries


def default_text(name: str, field: FieldInfo) -> str:
    default: Any = None if name in DERIVED else field.default
    if default is PydanticUndefined:
        default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return ""
    return json.dumps(default) if isinstance(default, bool | dict) else str(default)


def test_every_setting_is_listed() -> None:
    assert read_example().keys() == Settings.model_fields.keys()


def test_every_line_may_be_taken_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = Settings()
    for name, value in read_example().items():
        monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", value)
    assert Settings() == plain


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_default_is_as_listed(name: str) -> None:
    assert read_example().get(name) == default_text(name, Settings.model_fields[name])
