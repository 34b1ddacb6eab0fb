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
    r"self\._(?P<method>get|post|delete|put|patch|get_api_list)\("
    r'\s*(?:path_template\(\s*)?"(?P<path>/[^"?]*)'
)


def calls_of_client() -> Iterator[tuple[str, str]]:
    folder = Path(openai.__file__).parent / "resources"
    for file in sorted(folder.rglob("*.py")):
        for found in _ASKED.finditer(file.read_text(encoding="utf-8")):
            method = found["method"].partition("_")[0].upper()
            yield method, "/v1" + re.sub(r"\{[^}]*\}", "x", found["path"])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(load_settings(data_dir=tmp_path_factory.mktemp("data")))


def answers(app: FastAPI, path: str, method: str = "POST") -> list[bool]:
    """Whether each router that takes a call refuses it, in their order."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return [
        getattr(route, "original_router", None) is absent.router
        for route in app.router.routes
        if route.matches(dict(scope))[0] is Match.FULL
    ]


def test_no_call_of_the_client_is_nothing(app: FastAPI) -> None:
    asked = set(calls_of_client())
    assert len(asked) > 150, "the client's source has another form; read it anew"
    assert [call for call in sorted(asked) if not answers(app, call[1], call[0])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_offered_is_not_said_to_be_absent(app: FastAPI, family: str) -> None:
    known = answers(app, f"/v1/{family}x" if family.endswith("/") else f"/v1/{family}")
    assert known == [True], "a route offers this: take the family out of the table"
