"""How training would read some records: their tokens, what is learned of them, what is cut.

The same encoding that a job does, without a job: nothing is trained and no model is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peft_engine.bases.base import Base
from peft_engine.configs.families import check_family
from peft_engine.parts.batching import Example
from peft_engine.tasks.protocol import Record
from peft_engine.tasks.table import find_task
from peft_engine.tasks.text_generation import TextGeneration
from peft_engine.training.resolve import pick_max_length

# Legend of axes: T tokens of a row, U tokens of the decoder.


@dataclass(frozen=True)
class ReadTokens:
    """What one stack of the base reads of a row.

    Attributes:
        ids: Token ids, (T) or (U).
        tokens: Their texts; half a character is shown as U+FFFD.
        learned: For each token whether the loss counts it; None: the task learns no tokens.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    learned: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class ReadPart:
    """One example of a record.

    Attributes:
        rows: One, or one a choice.
        decoder: What is written, on a base with two stacks; None on others.
        cut_tokens: Tokens that did not fit.
    """

    rows: tuple[ReadTokens, ...]
    decoder: ReadTokens | None
    cut_tokens: int


@dataclass(frozen=True)
class Preview:
    """Records as a job would read them.

    Attributes:
        max_length: Longest row in tokens.
        records: The parts of each record in order: one, several windows, or one a turn.
    """

    max_length: int
    records: tuple[tuple[ReadPart, ...], ...]


def preview(
    base: Base, task_name: str, records: Sequence[Record], *, max_length: int | Literal["auto"]
) -> Preview:
    """Read records as a job would.

    Args:
        base: Its tokenizer and template are used.
        task_name: A task of the base's family.
        records: Canonical records of one split.
        max_length: As ``training.max_length`` of a job.

    Returns:
        What would be read. A record that cannot be read raises ``DataError``, as it would fail the
        job; a task that the base does not offer, or a length beyond its own, ``ConfigError``.
    """
    check_family(task_name, base.architecture, base=base.name)
    task = find_task(task_name, records)
    length = pick_max_length(max_length, base, task)
    parts: list[list[ReadPart]] = [[] for _ in records]
    learns = isinstance(task, TextGeneration)
    for example in task.encode(base, records, labels=None, max_length=length):
        parts[example.record].append(_read(base, example, learns=learns))
    return Preview(length, tuple(map(tuple, parts)))


def _read(base: Base, example: Example, *, learns: bool) -> ReadPart:
    decoded = example.rows[0].decoder_ids
    learned = tuple(example.target) if learns else None
    rows = tuple(
        _tokens(base, row.input_ids, learned if decoded is None else None) for row in example.rows
    )
    decoder = None if decoded is None else _tokens(base, decoded, learned)
    return ReadPart(rows, decoder, example.cut_tokens)


def _tokens(base: Base, ids: Sequence[int], learned: tuple[bool, ...] | None) -> ReadTokens:
    return ReadTokens(tuple(ids), tuple(base.text.token_text(token) for token in ids), learned)
