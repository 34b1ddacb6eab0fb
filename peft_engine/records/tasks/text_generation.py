"""text-generation: prompt and completion, a dialogue of messages, or plain text."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, present, read_text, read_text_list, type_name

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
# How the chat templates of common model families spell their control tokens.
_CONTROL_TOKEN = re.compile(r"<\|[a-z_]{2,32}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")


class TextGeneration:
    """Three forms; the loss lies on the completion, on the assistant's turns, or on all."""

    name = "text-generation"
    forms: tuple[Form, ...] = (
        Form(
            "messages",
            ("messages",),
            optional=("references",),
            structured=("messages", "references"),
            turned=("conversations",),
        ),
        Form(
            "prompt-completion",
            ("prompt",),
            ("completion",),
            optional=("references",),
            structured=("references",),
        ),
        Form("text", ("text",)),
    )
    aliases: Mapping[str, tuple[str, ...]] = {
        "prompt": ("instruction", "input", "source", "question", "query"),
        "completion": ("output", "response", "target", "answer"),
        "messages": ("conversations", "dialog", "conversation"),
        "text": ("content", "document"),
    }

    def prepare(self, row: Mapping[str, Any], check: RowCheck, /) -> Mapping[str, Any]:
        """Turn Alpaca and ShareGPT rows into ours; see ``TaskSchema.prepare``."""
        if "conversations" in row and "messages" not in row:
            messages = _from_sharegpt(row["conversations"])
            if messages is not None:
                check.notice(
                    "converted_form",
                    "ShareGPT rows (conversations, from, value) were read as messages",
                    level="note",
                )
                rest = {key: row[key] for key in row if key != "conversations"}
                return {**rest, "messages": messages}
        if isinstance(row.get("instruction"), str) and "output" in row and "prompt" not in row:
            check.notice(
                "converted_form",
                "Alpaca rows (instruction, input, output) were read as prompt and completion",
                level="note",
            )
            more = row.get("input")
            prompt = row["instruction"] + (f"\n\n{more}" if isinstance(more, str) and more else "")
            rest = {k: row[k] for k in row if k not in {"instruction", "input", "output"}}
            return {**rest, "prompt": prompt, "completion": row["output"]}
        return row

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row; see ``TaskSchema.read``."""
        record: Record = {}
        if form.kind == "messages":
            if present(row, "messages", check):
                record["messages"] = _read_messages(row["messages"], check)
        else:
            fields = form.required if check.labelled else form.inputs
            record = {field: read_text(row, field, check) for field in fields}
        if row.get("references") is not None and "references" in form.optional:
            references = read_text_list(row, "references", check)
            if references is not None and not all(r.strip() for r in references):
                check.bad(
                    "empty_text",
                    '"references" holds an empty or blank text',
                    "leave it out of the list",
                    column="references",
                )
            if references:
                record["references"] = references
        if not check.failed and _CONTROL_TOKEN.search(self.text_of(record)):
            check.notice(
                "control_tokens",
                "texts spell a control token of chat models; they are encoded as plain text and "
                "never become that token",
                "take them out if they came in by accident (a template applied before the upload)",
            )
        return record

    def input_of(self, record: Record, /) -> str:
        """The prompt; the turns before the last answer; or the whole text."""
        if "messages" in record:
            turns = [f"{m['role']}\x1f{m['content']}" for m in record["messages"][:-1]]
            return "\x1e".join(turns)
        return str(record["prompt"] if "prompt" in record else record["text"])

    def target_of(self, _record: Record, /) -> str | None:
        """None: one prompt may have several right completions."""
        return None

    def labels_of(self, _record: Record, /) -> tuple[str, ...]:
        """No classes."""
        return ()

    def text_of(self, record: Record, /) -> str:
        """All that the model reads and writes."""
        if "messages" in record:
            return "\n".join(m["content"] for m in record["messages"])
        if "text" in record:
            return str(record["text"])
        return f"{record['prompt']}{record.get('completion', '')}"


def _from_sharegpt(turns: object) -> list[dict[str, Any]] | None:
    if not isinstance(turns, list) or not turns:
        return None
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            return None
        role = turn["from"]
        messages.append(
            {
                "role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
                "content": turn["value"],
            }
        )
    return messages


def _read_messages(value: object, check: RowCheck) -> list[dict[str, str]]:
    if not isinstance(value, list):
        check.bad(
            "wrong_type",
            f'"messages" must be a list of objects; it is {type_name(value)}',
            'write "messages": [{"role": "user", "content": "…"}, …]',
            column="messages",
        )
        return []
    if not value:
        check.bad(
            "bad_turns",
            '"messages" is empty',
            "give a user turn and an assistant turn",
            column="messages",
        )
        return []
    messages = [_read_message(turn, at, check) for at, turn in enumerate(value)]
    if not check.failed:
        _check_order([m["role"] for m in messages], check)
    return messages


def _read_message(turn: object, at: int, check: RowCheck) -> dict[str, str]:
    column = f"messages[{at}]"
    if not isinstance(turn, dict):
        check.bad(
            "wrong_type",
            f"{column} must be an object; it is {type_name(turn)}",
            'write {"role": "user", "content": "…"}',
            column=column,
        )
        return {}
    for key in ("role", "content"):
        if key not in turn:
            check.bad(
                "missing_field",
                f'{column} has no "{key}"',
                "every turn needs role and content",
                column=column,
            )
    unread = sorted(turn.keys() - {"role", "content"})
    if unread:
        check.notice(
            "fields_left_out",
            "keys of messages that are not read were left out: "
            + ", ".join(shown(key) for key in unread[:5]),
            level="note",
        )
    role, content = turn.get("role"), turn.get("content")
    if "role" in turn and role not in ROLES:
        check.bad(
            "bad_role",
            f"{column} has the role {shown(role)}",
            "roles are system, user, assistant and tool",
            column=f"{column}.role",
        )
    if "content" in turn:
        read_text({f"{column}.content": content}, f"{column}.content", check)
    return {"role": str(role), "content": str(content)}


def _check_order(roles: list[str], check: RowCheck) -> None:
    """Hold turns to what chat templates expect: a system turn or none, then user, assistant, …."""
    said = None
    if "system" in roles[1:]:
        said = f"turn {roles.index('system', 1) + 1} is a system turn; only the first may be one"
    turns = roles[1:] if roles[0] == "system" else roles
    if not said and turns and turns[0] != "user":
        said = f"the dialogue starts with the {turns[0]}; the user speaks first"
    pairs = pairwise(turns)
    if not said and any(a == b != "tool" for a, b in pairs):
        said = "two turns of the same role follow one another"
    if not said and check.labelled and "assistant" not in turns:
        said = "no assistant turn: there is nothing to learn"
    if not said and check.labelled and turns[-1] != "assistant":
        said = f"the last turn is the {turns[-1]}'s; the assistant must have the last word"
    if said:
        check.bad(
            "bad_turns",
            said,
            "let user and assistant take turns, the assistant last",
            column="messages",
        )
