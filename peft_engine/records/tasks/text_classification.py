"""text-classification: ``{"text", "text_pair"?, "label"}`` or ``"labels": [...]`` (multi-label)."""

from collections.abc import Mapping
from typing import Any

from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_label, read_text, type_name


class TextClassification:
    """One label a text (or pair of texts), or several labels a text."""

    name = "text-classification"
    forms: tuple[Form, ...] = (
        Form("pair", ("text", "text_pair"), ("label",)),
        Form("single", ("text",), ("label",)),
        Form("multi-label-pair", ("text", "text_pair"), ("labels",), structured=("labels",)),
        Form("multi-label", ("text",), ("labels",), structured=("labels",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "text": ("sentence", "content", "review", "utterance", "sentence1", "premise", "query"),
        "text_pair": ("sentence2", "hypothesis", "text2"),
        "label": ("target", "class", "category", "intent", "sentiment", "labels"),
        "labels": ("label", "classes", "categories", "tags"),
    }

    def prepare(self, row: Mapping[str, Any], _check: RowCheck, /) -> Mapping[str, Any]:
        """Nothing to turn: see ``TaskSchema.prepare``."""
        return row

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        record: Record = {field: read_text(row, field, check) for field in form.inputs}
        if not check.labelled:
            return record
        target = form.targets[0]
        if present(row, target, check):
            value = row[target]
            is_one = target == "label"
            record[target] = (
                read_label(value, target, check) if is_one else _read_labels(value, check)
            )
        return record

    def input_of(self, record: Record, /) -> str:
        """The text or both texts."""
        return f"{record['text']}\x1f{record.get('text_pair', '')}"

    def target_of(self, record: Record, /) -> str | None:
        """The label, or the set of labels in one order."""
        return "\x1f".join(self.labels_of(record))

    def labels_of(self, record: Record, /) -> tuple[str, ...]:
        """The label, or the labels by name."""
        return tuple(sorted(record["labels"])) if "labels" in record else (record["label"],)

    def text_of(self, record: Record, /) -> str:
        """The text or both texts."""
        pair = record.get("text_pair")
        return f"{record['text']} {pair}" if pair else str(record["text"])


def _read_labels(value: object, check: RowCheck) -> list[str]:
    if not isinstance(value, list):
        check.bad(
            "wrong_type",
            f'"labels" must be a list of texts; it is {type_name(value)}',
            'write "labels": ["…", "…"], or "label": "…" for a single one',
            column="labels",
        )
        return []
    if not value:
        check.notice(
            "labels_empty",
            "rows with an empty list of labels are taken as rows that no label fits",
            level="note",
        )
    labels = [read_label(item, "labels", check) for item in value]
    if not check.failed and len(set(labels)) != len(labels):
        check.bad(
            "label_repeated", "a label stands twice in one row", "keep it once", column="labels"
        )
    return labels
