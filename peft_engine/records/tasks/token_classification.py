"""token-classification: ``{"tokens", "tags"}`` (BIO, IO) or ``{"text", "entities"}``."""

import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import (
    Form,
    Record,
    present,
    read_label,
    read_text,
    read_text_list,
    type_name,
)
from peft_engine.records.spans import read_span

_TAG = re.compile(r"(?:O|[BI]-\S(?:.*\S)?)\Z", re.DOTALL)
# Categories of characters that leave nothing of a token: separators, controls, format marks.
_INVISIBLE = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Mn"})


class TokenClassification:
    """One tag a token, or spans of a text."""

    name = "token-classification"
    forms: tuple[Form, ...] = (
        Form("tokens", ("tokens",), ("tags",), structured=("tokens", "tags")),
        Form("text", ("text",), ("entities",), structured=("entities",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "tokens": ("words",),
        "tags": ("ner_tags", "labels", "ner"),
        "entities": ("spans", "ents", "label"),
    }

    def prepare(self, row: Mapping[str, Any], _check: RowCheck, /) -> Mapping[str, Any]:
        """Nothing to turn: see ``TaskSchema.prepare``."""
        return row

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        if form.kind == "text":
            record: Record = {"text": read_text(row, "text", check)}
            if check.labelled and present(row, "entities", check):
                record["entities"] = _read_entities(row["entities"], record["text"], check)
            return record
        tokens = _read_tokens(row, check)
        if not check.labelled:
            return {"tokens": tokens}
        tags = read_text_list(row, "tags", check)
        if tokens is None or tags is None:
            return None
        if len(tokens) != len(tags):
            check.bad(
                "length_mismatch",
                f"{len(tokens)} tokens and {len(tags)} tags",
                "give one tag for each token",
                column="tags",
            )
            return None
        return {"tokens": tokens, "tags": _read_tags(tags, check)}

    def input_of(self, record: Record, /) -> str:
        """The text or the tokens."""
        return str(record["text"]) if "text" in record else "\x1f".join(record["tokens"])

    def target_of(self, record: Record, /) -> str | None:
        """The tags or the entities."""
        return "\x1f".join(record["tags"]) if "tags" in record else repr(record["entities"])

    def labels_of(self, record: Record, /) -> tuple[str, ...]:
        """The types of entity in the row."""
        if "tags" in record:
            return tuple(sorted({tag[2:] for tag in record["tags"] if tag != "O"}))
        return tuple(sorted({entity["label"] for entity in record["entities"]}))

    def text_of(self, record: Record, /) -> str:
        """The text or the tokens with blanks between."""
        return str(record["text"]) if "text" in record else " ".join(record["tokens"])


def _read_tokens(row: Mapping[str, Any], check: RowCheck) -> list[str] | None:
    tokens = read_text_list(row, "tokens", check)
    if tokens is None:
        return None
    if not tokens:
        check.bad("empty_token", '"tokens" is an empty list', "leave the row out", column="tokens")
    for at, token in enumerate(tokens):
        if not token.isascii() or not token.strip() or not token.isprintable():
            if all(unicodedata.category(c) in _INVISIBLE for c in token):
                check.bad(
                    "empty_token",
                    f"tokens[{at}] is {shown(token)}, without a visible character: a tokenizer "
                    "makes nothing of it",
                    "take the token and its tag out",
                    column="tokens",
                )
            elif "\x00" in token:
                check.bad(
                    "nul_character", f"tokens[{at}] holds U+0000", "take it out", column="tokens"
                )
    return tokens


def _read_tags(tags: list[str], check: RowCheck) -> list[str]:
    unknown = list(dict.fromkeys(tag for tag in tags if not _TAG.match(tag)))
    if unknown:
        told = ", ".join(shown(tag) for tag in unknown[:10])
        check.bad(
            "unknown_tag",
            f"tags that are not known: {told}",
            "a tag is O, B-TYPE (an entity begins) or I-TYPE (it goes on)",
            column="tags",
        )
        return tags
    before, repaired = "O", []
    for tag in tags:
        prefix, kind = tag[:1], tag[2:]
        if prefix != "O":
            check.observe("tag_prefix", prefix)
        repaired.append(f"B-{kind}" if prefix == "I" and before[2:] != kind else tag)
        before = tag
    changed = sum(a != b for a, b in zip(tags, repaired, strict=True))
    if changed:
        check.notice(
            "tags_repaired",
            "I- tags that begin an entity (after O or another type) were read as B-",
            "write B- where an entity begins",
            count=changed,
        )
    return repaired


def _read_entities(value: object, text: str, check: RowCheck) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        check.bad(
            "wrong_type",
            f'"entities" must be a list of objects; it is {type_name(value)}',
            'write "entities": [{"start": 0, "end": 4, "label": "PER"}]',
            column="entities",
        )
        return []
    entities: list[dict[str, Any]] = []
    for at, item in enumerate(value):
        column = f"entities[{at}]"
        span = read_span(item, column, text or None, check)
        if span is None or not isinstance(item, Mapping):
            continue
        if item.get("label") is None:
            check.bad("missing_field", f'{column} has no "label"', "name its type", column=column)
            continue
        entities.append({**span, "label": read_label(item["label"], f"{column}.label", check)})
    entities.sort(key=lambda entity: (entity["start"], entity["end"]))
    for a, b in pairwise(entities):
        if b["start"] < a["end"]:
            check.bad(
                "overlapping_entities",
                f"entities {a['start']}-{a['end']} and {b['start']}-{b['end']} overlap",
                "keep one of them: a character has one tag",
                column="entities",
            )
    return entities
