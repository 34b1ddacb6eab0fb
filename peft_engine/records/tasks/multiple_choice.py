"""multiple-choice: ``{"question", "choices": [str], "answer": index from 0}``."""

from collections.abc import Mapping
from typing import Any

from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_index, read_text, read_text_list


class MultipleChoice:
    """One right choice among several."""

    name = "multiple-choice"
    forms: tuple[Form, ...] = (
        Form("choices", ("question", "choices"), ("answer",), structured=("choices",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "question": ("query", "stem"),
        "choices": ("options", "endings"),
        "answer": ("label", "correct", "gold"),
    }

    def prepare(self, row: Mapping[str, Any], _check: RowCheck, /) -> Mapping[str, Any]:
        """Nothing to turn: see ``TaskSchema.prepare``."""
        return row

    def read(self, row: Mapping[str, Any], _form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        record: Record = {"question": read_text(row, "question", check)}
        choices = read_text_list(row, "choices", check)
        record["choices"] = choices
        if choices is not None:
            _check_choices(choices, check)
        if not check.labelled:
            return record
        if not present(row, "answer", check):
            return None
        answer = read_index(row["answer"], "answer", check, "bad_answer")
        if answer is not None and choices and answer >= len(choices):
            check.bad(
                "bad_answer",
                f'"answer" is {answer}, past the end of {len(choices)} choices',
                "count from 0",
                column="answer",
            )
        record["answer"] = answer
        if not check.failed:
            check.observe("answer", str(answer))
        return record

    def input_of(self, record: Record, /) -> str:
        """Question and choices."""
        return "\x1f".join((record["question"], *record["choices"]))

    def target_of(self, record: Record, /) -> str | None:
        """The right choice."""
        return str(record["answer"])

    def labels_of(self, _record: Record, /) -> tuple[str, ...]:
        """No classes."""
        return ()

    def text_of(self, record: Record, /) -> str:
        """The question with its longest choice: each choice is read beside the question."""
        return f"{record['question']} {max(record['choices'], key=len)}"


def _check_choices(choices: list[str], check: RowCheck) -> None:
    if len(choices) < 2 or len(choices) > check.max_choices:
        check.bad(
            "too_few_choices",
            f"{len(choices)} choices; between 2 and {check.max_choices} are needed",
            "give all choices of the question",
            column="choices",
        )
    for at, choice in enumerate(choices):
        if not choice.strip() or "\x00" in choice:
            check.bad(
                "empty_text",
                f"choices[{at}] is blank or holds U+0000",
                "write the choice out",
                column="choices",
            )
    if len(set(choices)) != len(choices):
        check.notice("duplicate_choice", "the same choice stands twice", "make choices differ")
