import ast
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import errors
from core.error_codes import ERROR_CODES, render_error_table
from core.errors import (
    BadInput,
    Conflict,
    InvalidTransition,
    NotFound,
    ServiceError,
    TooMany,
    Unavailable,
)

ROOT = Path(__file__).parents[3]
PACKAGES = ("app", "core", "inference", "peft_engine", "worker")
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ServiceError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_has_a_default_code_whose_status_is_the_class_s(
    kind: type[ServiceError],
) -> None:
    assert ERROR_CODES[kind.default_code].status == kind.default_status
    assert kind("what failed").status == kind.default_status


def test_the_tree_at_the_top_of_the_file_names_every_class() -> None:
    assert errors.__doc__ is not None
    for kind in CLASSES:
        assert kind.__name__ in errors.__doc__


def test_status_comes_from_the_code_then_from_the_class_and_can_be_given() -> None:
    assert ServiceError("x", code="job_not_found").status == 404
    assert BadInput("x", code="a_code_of_another_part").status == 400
    assert ServiceError("x", code="request_cancelled", status=498).status == 498


def test_an_error_carries_all_that_an_answer_needs() -> None:
    error = BadInput(
        "r is 0; give 1 to 256", param="method.r", details=[{"line": 1}], retry_after_seconds=7
    )
    assert (error.message, str(error)) == ("r is 0; give 1 to 256", "r is 0; give 1 to 256")
    assert (error.code, error.type, error.param) == (
        "bad_input",
        "invalid_request_error",
        "method.r",
    )
    assert error.details == [{"line": 1}]
    assert error.retry_after_seconds == 7


def test_only_errors_that_pass_say_when_to_come_back() -> None:
    assert TooMany("x").retry_after_seconds == 1
    assert Unavailable("x").retry_after_seconds == 5
    assert Conflict("x").retry_after_seconds is None
    assert InvalidTransition("x").status == 409


def test_an_error_survives_a_copy() -> None:
    error = copy.copy(NotFound("no job", code="job_not_found", param="job_id"))
    assert (error.message, error.code, error.status) == ("no job", "job_not_found", 404)


def test_every_code_has_a_sentence_and_an_error_status() -> None:
    for code, entry in ERROR_CODES.items():
        assert code.isidentifier()
        assert code.islower()
        assert 400 <= entry.status < 600, code
        assert entry.doc.endswith("."), code


def test_the_page_of_error_codes_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert page == render_error_table(), "run: python -m core.error_codes > docs/errors.md"


def _codes_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg != "code" or not isinstance(value, ast.Constant):
                continue
            if isinstance(value.value, str):
                yield value.value


@pytest.mark.parametrize("package", PACKAGES)
def test_every_code_that_is_raised_stands_in_the_table(package: str) -> None:
    unknown = {
        f"{code} in {path.relative_to(ROOT)}"
        for path in (ROOT / package).rglob("*.py")
        for code in _codes_in(path)
        if code not in ERROR_CODES
    }
    assert not unknown


def test_every_code_of_the_table_is_used() -> None:
    source = "".join(
        path.read_text()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "error_codes.py"
    )
    assert [code for code in ERROR_CODES if f'"{code}"' not in source] == []
