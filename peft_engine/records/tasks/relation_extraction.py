"""relation-extraction: ``{"text" or "tokens", "head", "tail", "label"}`` with spans."""

from collections.abc import Mapping
from typing import Any

from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_label, read_text, read_text_list
from peft_engine.records.spans import read_span


class RelationExtraction:
    """How two marked spans of a text relate."""

    name = "relation-extraction"
    forms: tuple[Form, ...] = (
        Form("text", ("text", "head", "tail"), ("label",), structured=("head", "tail")),
        Form(
            "tokens", ("tokens", "head", "tail"), ("label",), structured=("tokens", "head", "tail")
        ),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "text": ("sentence",),
        "head": ("subject", "e1", "subj"),
        "tail": ("object", "e2", "obj"),
        "label": ("relation",),
    }

    def prepare(self, row: Mapping[str, Any], _check: RowCheck, /) -> Mapping[str, Any]:
        """Nothing to turn: see ``TaskSchema.prepare``."""
        return row

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        within: str | list[str] | None
        if form.kind == "text":
            within = read_text(row, "text", check)
        else:
            within = read_text_list(row, "tokens", check)
        if within is not None and not within and not check.failed:
            check.bad("empty_text", '"tokens" is empty', "leave the row out", column="tokens")
        record: Record = {form.kind: within}
        for name in ("head", "tail"):
            if present(row, name, check):
                record[name] = read_span(row[name], name, within or None, check)
        if record.get("head") and record["head"] == record.get("tail"):
            check.bad(
                "same_span",
                "head and tail are the same span",
                "a relation needs two spans; leave the row out",
                column="tail",
            )
        if check.labelled and present(row, "label", check):
            record["label"] = read_label(row["label"], "label", check)
        return record

    def input_of(self, record: Record, /) -> str:
        """The text and both spans."""
        text = record["text"] if "text" in record else "\x1f".join(record["tokens"])
        head, tail = record["head"], record["tail"]
        spans = f"{head['start']} {head['end']} {tail['start']} {tail['end']}"
        return f"{text}\x1e{spans}"

    def target_of(self, record: Record, /) -> str | None:
        """The relation."""
        return str(record["label"])

    def labels_of(self, record: Record, /) -> tuple[str, ...]:
        """The relation."""
        return (record["label"],)

    def text_of(self, record: Record, /) -> str:
        """The text or the tokens with blanks between."""
        return str(record["text"]) if "text" in record else " ".join(record["tokens"])
