"""The description of the API: complete, and equal to the snapshot beside this file."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from app.schemas.errors import FORM_BODY, JSON_BODY
from core.error_codes import ERROR_CODES
from core.settings import load_settings

SNAPSHOT = Path(__file__).with_name("openapi.json")
PUBLIC = {"/healthz", "/readyz"}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(load_settings(data_dir=tmp_path_factory.mktemp("data")))
    return app.openapi()


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_snapshot_is_current(described: dict[str, Any]) -> None:
    """To renew it after a wanted change: python -m tests.unit.app.test_openapi."""
    assert json.loads(SNAPSHOT.read_text()) == described


def test_every_route_is_described(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        assert operation["summary"], path
        assert len(operation["description"]) > 15, path
        assert "422" not in operation["responses"], f"{method} {path} shows the framework's error"
        if path not in PUBLIC:
            assert {"400", "401", "403", "503"} <= set(operation["responses"]), (method, path)
            assert operation["security"], (method, path)


def test_no_section_of_a_docstring_is_shown(described: dict[str, Any]) -> None:
    for section in ("Args:", "Attributes:", "Raises:", "Returns:"):
        assert f"\\n{section}\\n" not in json.dumps(described), section


def test_every_error_has_an_example_with_a_known_code(described: dict[str, Any]) -> None:
    for path, _, operation in operations(described):
        for status, answer in operation["responses"].items():
            if status < "400" or path == "/readyz":
                continue
            content = answer["content"]
            assert set(content) == {"application/json"}, (path, status)
            for code, example in content["application/json"]["examples"].items():
                assert ERROR_CODES[code].status == int(status)
                assert example["value"]["error"]["code"] == code


def test_every_body_has_an_example(described: dict[str, Any]) -> None:
    for path, _, operation in operations(described):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            schema = content.get("schema", {})
            name = schema.get("$ref", "").rsplit("/", 1)[-1]
            fields = described["components"]["schemas"].get(name, schema).get("properties", {})
            inline = any({"examples", "description"} & field.keys() for field in fields.values())
            assert "examples" in content or inline, (path, kind)


@pytest.mark.parametrize(
    ("kind", "codes"), [("application/json", JSON_BODY), ("multipart/form-data", FORM_BODY)]
)
def test_whatever_reads_a_body_tells_what_may_be_wrong_with_it(
    described: dict[str, Any], kind: str, codes: tuple[str, ...]
) -> None:
    silent = {}
    for path, method, operation in operations(described):
        if kind in operation.get("requestBody", {}).get("content", {}):
            told = {
                code
                for status, answer in operation["responses"].items()
                if status >= "400"
                for code in answer["content"]["application/json"]["examples"]
            }
            silent[method, path] = set(codes) - told
    assert silent
    assert {where: left for where, left in silent.items() if left} == {}


if __name__ == "__main__":
    text = json.dumps(create_app(load_settings()).openapi(), indent=1, sort_keys=True)
    SNAPSHOT.write_text(text + "\n")
