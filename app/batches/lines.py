"""The file of a batch, line by line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.openai.schemas.batches import RequestLine
from app.schemas.shared import problems_of
from peft_engine.configs.nesting import MAX_DEPTH, is_deeper

_BOM = b"\xef\xbb\xbf"

_CODES = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
"""Ours, by those of pydantic; every other is ``bad_input``."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: Its place in the file, from 1.
        content: Its bytes; None when there are too many.
    """

    number: int
    content: bytes | None


class BadLine(Exception):
    """A line that is no request.

    Attributes:
        problems: ``{code, message, param}`` each.
    """

    def __init__(self, *problems: dict[str, Any]) -> None:
        super().__init__(problems)
        self.problems = problems


def read_lines(path: Path, *, max_bytes: int) -> Iterator[Line]:
    """Read a file, of which never more than one line is in memory.

    Args:
        path: The file.
        max_bytes: Of a line, its end included.

    Yields:
        Its lines, but for blank ones.
    """
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        number = 0
        while content := file.readline(max_bytes + 1):
            number += 1
            if len(content) > max_bytes:
                while content and not content.endswith(b"\n"):
                    content = file.readline(max_bytes)
                yield Line(number, None)
            elif content.strip():
                yield Line(number, content)


def parse_line(content: bytes) -> RequestLine:
    """Read a request.

    Args:
        content: A line.

    Returns:
        The request.

    Raises:
        BadLine: It is none.
    """
    try:
        value = json.loads(content)
        if is_deeper(value):  # it is written and read again further down the stack
            message = f"the line has more than {MAX_DEPTH} lists and objects in one another"
            raise BadLine({"code": "invalid_json", "message": message, "param": None})
        return RequestLine.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error.errors())
        told = [{**one, "code": _CODES.get(one["code"], "bad_input")} for one in problems]
        raise BadLine(*told) from error
    # not UTF-8, not JSON, an integer of 5,000 digits, or nested too deeply
    except (ValueError, RecursionError) as error:
        message = f"the line is not valid JSON: {str(error)[:200]}"
        raise BadLine({"code": "invalid_json", "message": message, "param": None}) from error
