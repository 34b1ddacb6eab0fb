"""Every path that the official client asks is offered, or said not to be."""

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from starlette.routing import Match

from app.main import create_app
from app.openai.routes import absent
from app.openai.services.absent import FAMILIES
from core.settings import load_settings

_ASKED = re.compile(
    r'(?:path_template\(|self\._(?:get|post|delete|put|patch|get_api_list)\()\s*"(/[^"?]*)'
)


def paths_of_client() -> Iterator[str]:
    folder = Path(openai.__file__).parent / "resources"
    for file in sorted(folder.rglob("*.py")):
        for found in _ASKED.finditer(file.read_text(encoding="utf-8")):
            yield "/v1" + re.sub(r"\{[^}]*\}", "x", found[1])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(load_settings(data_dir=tmp_path_factory.mktemp("data")))


def answers(app: FastAPI, path: str) -> list[bool]:
    """Whether each router that knows a path refuses it, in their order."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    return [
        getattr(route, "original_router", None) is absent.router
        for route in app.router.routes
        if route.matches(dict(scope))[0] is not Match.NONE
    ]


def test_no_path_of_the_client_is_nothing(app: FastAPI) -> None:
    asked = set(paths_of_client())
    assert len(asked) > 100, "the client's source has another form; read it anew"
    assert [path for path in sorted(asked) if not answers(app, path)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_offered_is_not_said_to_be_absent(app: FastAPI, family: str) -> None:
    known = answers(app, f"/v1/{family}x" if family.endswith("/") else f"/v1/{family}")
    assert known == [True], "a route offers this: take the family out of the table"
