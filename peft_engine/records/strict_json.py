"""Strict JSON for one record: what ``json.loads`` lets pass in silence is refused with a reason.

Refuses duplicate keys, NaN and Infinity (also as 1e999), integers of thousands of digits, deep
nesting, U+0000, half surrogate pairs and top-level values that are no object. Never raises
anything but ``Refused``.
"""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from peft_engine.records.options import Limits
from peft_engine.records.problems import shown

# Strings are skipped as a whole, so that brackets inside them do not count; possessive, so
# that nothing is tried twice.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
# Escapes that may give U+0000 or half a surrogate pair. Few rows have one; only they are walked.
_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Refused(Exception):
    """One text that is not a record.

    Args:
        code: A key of ``problems.CODES``.
        message: What is wrong.
        fix: What to do.
        column: Key at fault, where one is known.
        cut_off: The text ends in the middle of a value.
    """

    def __init__(
        self, code: str, message: str, fix: str, *, column: str | None = None, cut_off: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.column = column
        self.cut_off = cut_off


class StrictDecoder:
    """Parses single records. One instance serves one file; it keeps nothing between records.

    Args:
        limits: Bounds on depth, keys and digits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decode = json.JSONDecoder(
            object_pairs_hook=self._gather,
            parse_constant=_refuse_constant,
            parse_float=_read_float,
            parse_int=self._read_integer,
        ).decode

    def value(self, text: str) -> Any:
        """Parse one JSON value strictly, or raise ``Refused`` with the reason.

        Args:
            text: JSON without a line end.

        Returns:
            The value.
        """
        if text.count("[") + text.count("{") > self._limits.max_depth:
            _check_depth(text, self._limits.max_depth)
        try:
            value = self._decode(text)
        except json.JSONDecodeError as error:
            _refuse_syntax(text, error)
        if _SUSPECT_ESCAPE.search(text):
            _check_strings(value, None)
        return value

    def record(self, text: str) -> dict[str, Any]:
        """Parse one JSON object strictly.

        Args:
            text: JSON without a line end.

        Returns:
            The object as a dict.

        Raises:
            Refused: It is not strict JSON, over a limit, or no object.
        """
        value = self.value(text)
        if not isinstance(value, dict):
            raise Refused(
                "not_an_object",
                f"each line must be a JSON object; this one is {_kind(value)}",
                'write one object a line, such as {"text": "…", "label": "…"}',
            )
        return value

    def _gather(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise Refused(
                "duplicate_key",
                f"the key {shown(twice)} stands {counts[twice]} times in one object",
                "keep one of them: a reader cannot know which is meant",
                column=twice,
            )
        if len(pairs) > self._limits.max_keys:
            raise Refused(
                "too_many_keys",
                f"an object has {len(pairs)} keys; the limit is {self._limits.max_keys}",
                "send only the fields that the task needs",
            )
        return found

    def _read_integer(self, digits: str) -> int:
        if len(digits) > self._limits.max_integer_digits:
            raise Refused(
                "integer_too_large",
                f"an integer of {len(digits)} digits; the limit is "
                f"{self._limits.max_integer_digits}",
                "put it in quotes if it is a name or an identifier",
            )
        return int(digits)


def _refuse_constant(name: str) -> Any:
    raise Refused("not_a_number", f"{name} is not JSON", "leave the row out or give a number")


def _read_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Refused(
            "not_a_number",
            f"{digits[:40]} is beyond the range of numbers (1.8e308) and would become infinity",
            "leave the row out or give a smaller number",
        )
    return value


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(text):
        mark = match.group()[0]
        if mark in "[{":
            depth += 1
            if depth > max_depth:
                raise Refused(
                    "too_deep",
                    f"nested more than {max_depth} levels deep",
                    "flatten the record: no task needs more than a few levels",
                )
        elif mark in "]}":
            depth -= 1


def _check_strings(value: Any, column: str | None) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise Refused(
                "nul_character",
                f"the text {shown(value)} holds U+0000",
                "take the character out",
                column=column,
            )
        if _SURROGATE.search(value):
            raise Refused(
                "lone_surrogate",
                f"the text {shown(value)} holds half of a surrogate pair: no valid Unicode",
                "cut texts by characters, not by UTF-16 units; take the broken half out",
                column=column,
            )
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, column)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key, column)
            _check_strings(item, column or key)


def _refuse_syntax(text: str, error: json.JSONDecodeError) -> NoReturn:
    raise _explain(text, error) from None


def _explain(text: str, error: json.JSONDecodeError) -> Refused:
    """Say in the user's words what the decoder stumbled on."""
    at, where = error.pos, f"at character {error.pos + 1}"
    rest = text[at:].lstrip()
    if "\x00" in text or error.msg.startswith("Invalid control character"):
        found = _CONTROL.search(text) or re.search("[\t\n\r]", text)
        name = f"U+{ord(found.group()):04X}" if found else "one"
        return Refused(
            "control_character",
            f"a raw control character ({name}) is not JSON ({where})",
            "write it as an escape (\\n, \\t) or take it out",
        )
    if error.msg == "Extra data":
        return _explain_extra(text, at, where)
    if rest.startswith("'") or text.startswith("{'"):
        return Refused(
            "single_quotes",
            f"not JSON: strings need double quotes ({where})",
            "write rows with json.dumps(row), not print(row)",
        )
    if (rest.startswith("}") and text[:at].rstrip().endswith(",")) or "trailing comma" in error.msg:
        return Refused(
            "not_json", f"not JSON: a comma before a closing brace ({where})", "take the comma out"
        )
    if not rest or error.msg.startswith("Unterminated string"):
        return Refused(
            "not_json",
            f"not complete JSON: the line ends in the middle of a value ({where})",
            "one whole object a line is needed",
            cut_off=True,
        )
    return Refused(
        "not_json",
        f"not JSON {where}: {error.msg}, found {shown(rest[:20])}",
        "write rows with a JSON library",
    )


def _explain_extra(text: str, at: int, where: str) -> Refused:
    if text[at] in "{[":
        gap = text[:at].rstrip(" \t")
        if gap.endswith("\r"):
            return Refused(
                "several_objects",
                f"more than one object on one line: the line ends are bare CR ({where})",
                "save the file with LF or CRLF line ends",
            )
        return Refused(
            "several_objects",
            f"more than one object on one line ({where})",
            "put a line end after each object",
        )
    return Refused(
        "not_json",
        f"not JSON: {shown(text[at : at + 20])} stands after the value ({where})",
        "keep one object a line and nothing else",
    )


def _kind(value: Any) -> str:
    names = {str: "a string", bool: "true or false", list: "an array", type(None): "null"}
    return names.get(type(value), "a number")
