"""Questions in words, for models that write: what they read, and what they might say."""

import json
from collections.abc import Sequence

from app.openai.schemas.decisions import (
    Choice,
    Content,
    InputMessage,
    JsonPart,
    Level,
    Option,
    Predicate,
    Question,
)

YES_NO = ("yes", "no")
"""What is said of a statement: that it is true, or not."""

Turn = dict[str, str]


def read_content(content: Content) -> str:
    """Read a text, or its parts.

    Args:
        content: As it was sent.

    Returns:
        The text; parts stand on lines of their own, JSON is compact.
    """
    if isinstance(content, str):
        return content
    return "\n".join(
        json.dumps(part.data, ensure_ascii=False, separators=(",", ":"))
        if isinstance(part, JsonPart)
        else part.text
        for part in content
    )


def offered_by(question: Question) -> tuple[str, ...]:
    """What may be answered, as texts.

    Args:
        question: Of any type.

    Returns:
        One text for each answer, in the order of the question; of a predicate ``YES_NO``.
    """
    if isinstance(question, Predicate):
        return YES_NO
    return tuple(one.text for one in _options(question))


def ask_in_words(given: str | Sequence[InputMessage], question: Question) -> list[Turn]:
    """Put a question behind the input.

    Args:
        given: A text, or a conversation.
        question: Of any type.

    Returns:
        A conversation whose last turn is the user's.
    """
    turns = _turns(given)
    asked = _in_words(question)
    if not asked:
        return turns
    if turns[-1]["role"] == "user":
        before = turns.pop()["content"]
        asked = f"{before}\n\n{asked}" if before else asked
    return [*turns, {"role": "user", "content": asked}]


def _turns(given: str | Sequence[InputMessage]) -> list[Turn]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": read_content(message.content),
        }
        for message in given
    ]


def _in_words(question: Question) -> str:
    """The question; empty where its instructions are, since then the input says it all."""
    instructions = read_content(question.instructions)
    if not instructions:
        return ""
    if isinstance(question, Predicate):
        return f"Is this true? {instructions}\nAnswer {' or '.join(YES_NO)}."
    options = _options(question)
    if not any(one.description for one in options):
        # small models name the first of a list, whatever the text
        return instructions
    what = "of these" if isinstance(question, Choice) else "level, from the lowest to the highest"
    return "\n".join([instructions, f"Answer with one {what}:", *map(_line, options)])


def _options(question: Question) -> Sequence[Option | Level]:
    if isinstance(question, Predicate):
        return ()
    return question.choices if isinstance(question, Choice) else question.levels


def _line(one: Option | Level) -> str:
    return f"- {one.text}: {one.description}" if one.description else f"- {one.text}"
