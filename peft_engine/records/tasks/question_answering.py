"""question-answering: ``{"question", "context", "answers": [{"text", "start"}]}``, extractive."""

from collections.abc import Mapping
from typing import Any

from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_text, type_name


class QuestionAnswering:
    """The answer is a piece of the context; an empty list says that there is none."""

    name = "question-answering"
    forms: tuple[Form, ...] = (
        Form("extractive", ("question", "context"), ("answers",), structured=("answers",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "question": ("query",),
        "context": ("passage", "paragraph", "document"),
        "answers": ("answer",),
    }

    def prepare(self, row: Mapping[str, Any], check: RowCheck, /) -> Mapping[str, Any]:
        """Turn answers as an object of two lists into ours; see ``TaskSchema.prepare``."""
        answers = row.get("answers")
        if not isinstance(answers, Mapping):
            return row
        texts, starts = answers.get("text"), answers.get("answer_start", answers.get("start"))
        if not isinstance(texts, list) or not isinstance(starts, list):
            return row
        if len(texts) != len(starts):
            return row
        check.notice(
            "converted_form",
            "answers given as an object of two lists were read as a list of answers",
            level="note",
        )
        pairs = zip(texts, starts, strict=True)
        return {**row, "answers": [{"text": text, "start": start} for text, start in pairs]}

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        record: Record = {field: read_text(row, field, check) for field in form.inputs}
        if not check.labelled:
            return record
        if not present(row, "answers", check):
            return None
        answers = row["answers"]
        if not isinstance(answers, list):
            check.bad(
                "wrong_type",
                f'"answers" must be a list of objects; it is {type_name(answers)}',
                'write "answers": [{"text": "…", "start": 0}]',
                column="answers",
            )
            return None
        record["answers"] = [
            _read_answer(answer, at, record["context"], check) for at, answer in enumerate(answers)
        ]
        if not answers:
            check.notice(
                "unanswerable",
                "questions without an answer are taken as unanswerable",
                level="note",
            )
        return record

    def input_of(self, record: Record, /) -> str:
        """Question and context."""
        return f"{record['question']}\x1f{record['context']}"

    def target_of(self, record: Record, /) -> str | None:
        """None: several answers to one question may be right."""

    def labels_of(self, _record: Record, /) -> tuple[str, ...]:
        """No classes."""
        return ()

    def text_of(self, record: Record, /) -> str:
        """Question and context."""
        return f"{record['question']} {record['context']}"


def _read_answer(answer: object, at: int, context: str, check: RowCheck) -> dict[str, Any]:
    column = f"answers[{at}]"
    if not isinstance(answer, Mapping):
        check.bad(
            "wrong_type",
            f"{column} must be an object; it is {type_name(answer)}",
            'write {"text": "…", "start": 0}',
            column=column,
        )
        return {}
    text = read_text({f"{column}.text": answer.get("text")}, f"{column}.text", check)
    start = answer.get("start", answer.get("answer_start"))
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        check.bad(
            "bad_span",
            f'"{column}.start" must be a whole number from 0; it is {shown(start)}',
            "give the place of the answer's first character in the context, from 0",
            column=f"{column}.start",
        )
    elif text and context and context[start : start + len(text)] != text:
        stands = context.find(text)
        found = f"it stands at {stands}" if stands >= 0 else "it is nowhere in the context"
        check.bad(
            "answer_not_in_context",
            f"{shown(text)} does not stand at {start} of the context; {found}",
            "starts count characters (Unicode code points) from 0; copy the answer literally",
            column=column,
        )
    return {"text": text, "start": start}
