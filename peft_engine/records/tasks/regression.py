"""regression: ``{"text", "text_pair"?, "value"}``; a numeric ``label`` or ``score`` is the same."""

from collections.abc import Mapping
from typing import Any

from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_number, read_text


class Regression:
    """One number a text or pair of texts."""

    name = "regression"
    forms: tuple[Form, ...] = (
        Form("pair", ("text", "text_pair"), ("value",)),
        Form("single", ("text",), ("value",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "text": ("sentence", "sentence1", "content", "review"),
        "text_pair": ("sentence2", "text2"),
        "value": ("label", "score", "target", "rating", "similarity"),
    }

    def prepare(self, row: Mapping[str, Any], check: RowCheck, /) -> Mapping[str, Any]:
        """Call ``label`` or ``score`` by its name; see ``TaskSchema.prepare``."""
        if "value" in row:
            return row
        for other in ("label", "score"):
            if other in row:
                check.names["value"] = other
                return {("value" if key == other else key): row[key] for key in row}
        return row

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        record: Record = {field: read_text(row, field, check) for field in form.inputs}
        if check.labelled and present(row, "value", check):
            record["value"] = read_number(row["value"], "value", check)
        return record

    def input_of(self, record: Record, /) -> str:
        """The text or both texts."""
        return f"{record['text']}\x1f{record.get('text_pair', '')}"

    def target_of(self, record: Record, /) -> str | None:
        """The number."""
        return repr(record["value"])

    def labels_of(self, _record: Record, /) -> tuple[str, ...]:
        """No classes."""
        return ()

    def text_of(self, record: Record, /) -> str:
        """The text or both texts."""
        pair = record.get("text_pair")
        return f"{record['text']} {pair}" if pair else str(record["text"])
