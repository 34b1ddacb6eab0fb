"""A certificate: what was trained is what is served.

Rows that were held out go through the serving path (the delta read back from its file, prepared and
batched as a request is, mixed with rows of another delta and of the plain base) and through the
trainer's own forward. Where the two disagree, something between them is wrong: a template, a scale,
an arithmetic, or the file holds another delta.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from peft_engine.bases.base import Base
from peft_engine.configs.base import Quantization
from peft_engine.configs.manifest import AnyHeadSpec, ValueHeadSpec
from peft_engine.delta import Delta, check_delta, load_delta
from peft_engine.errors import EngineError, RowError
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.serving import Engine, PreparedRow, Row, prepare_row
from peft_engine.tasks.passes import batch_logits, split_logits
from peft_engine.tasks.protocol import Head, HeadTask, Record, Task
from peft_engine.tasks.table import HEAD_TASKS, TASKS
from peft_engine.training.forwards import EvaluationForward

MAX_ROWS = 16
"""Enough for every kind of fault (each shows on any row), few enough to cost a second."""
_WRITTEN_TOKENS = 16
_SAME_PRECISION_TOLERANCE = 1e-3
"""Of probabilities, values and logits: a hundred times what batch shapes make of fp32."""
_OTHER_PRECISION_TOLERANCE = 0.1
"""Where the delta was trained in another arithmetic than it is served in, on purpose."""
_ROUNDED_TOLERANCE: Mapping[Quantization, float] = {"int8": 0.01, "int8-weight-only": 0.001}
"""Of probabilities, on bases that round activations: the last bit of fp32, in which batches differ,
moves an integer by one here and there (measured on minilm: by 0.0008 and 0.0002)."""
_ROUNDING: frozenset[Quantization] = frozenset({"int8", "int8-weight-only", "int4", "nf4"})
"""Quantizations that round activations; those of 4 bits do it before the language head."""
_WIDER_FOR_LOGITS = 10
"""Logits and values are not bounded by 1: so many times the tolerance, of values times the spread
of the training values (measured on similarities between 0 and 5, int8: 0.025)."""
_NUDGES = 4
_NUDGED_FACTOR = 2
"""Through thirty layers one integer moves others, until two paths are as far apart as either is
from fp32 (smollm2, int8: how much likelier one of two likely tokens is moves by 0.35 in the median
and up to 1.7; in bf16 the last bit of a logit above 16 is 0.125 by itself). So a row of a quantized
base, or of one in bf16, that differs by more than the tolerance is asked again after so many nudges
of the last bit of what enters, and may differ by so many times the most that these make of it. A
fault that makes less than that cannot be told from rounding."""
_CHANGED_SHARE = 8
"""One row of so many may change its words on an int8 base, where two labels are nearly equal."""
_TARGETS = frozenset({"label", "labels", "value", "tags", "entities", "answers", "references"})
_DECOY_FACTOR = -1.5


@dataclass(frozen=True)
class Certificate:
    """What was compared and how it came out.

    Attributes:
        passed: Whether the delta may be published.
        rows: Rows that were compared, those left out that training cut or serving refuses as too
            long; 0 where no row can be asked (plain text).
        largest_difference: Largest difference of a number between the two paths.
        tolerance: What is allowed; on quantized bases and in bf16 more, where a row shows that
            rounding makes more of it.
        near_ties: Rows whose text parts where two tokens were equally likely, or, on an int8 base,
            whose words changed.
        trained_precision: Arithmetic of training.
        served_precision: Arithmetic of serving.
        digest: Digest of the delta that was read back from its file.
        reason: Why it did not pass, in words; None when it did.
    """

    passed: bool
    rows: int
    largest_difference: float
    tolerance: float
    near_ties: int
    trained_precision: str
    served_precision: str
    digest: str
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The certificate for the job.

        Returns:
            JSON values by name.
        """
        return asdict(self)


def certify(
    delta: Delta,
    blob: bytes,
    records: Sequence[Record],
    *,
    base: Base,
    router: Router,
    served: Engine,
    check: Callable[[], None] = lambda: None,
) -> Certificate:
    """Replay held-out rows through the serving path and compare with the trainer's own.

    Args:
        delta: As it came out of training, in memory.
        blob: The file that will be published.
        records: Held-out records; evenly spaced ones are taken.
        base: The base that it was trained on.
        router: Router of that base.
        served: An engine over the base as it will be served.
        check: Called before each forward of the trainer; may raise to interrupt.

    Returns:
        The certificate, passed or not.
    """
    same = base.precision == served.base.precision
    tolerance = _SAME_PRECISION_TOLERANCE if same else _OTHER_PRECISION_TOLERANCE
    scheme = base.info.derivation.quantization
    rounded = _ROUNDED_TOLERANCE.get(scheme)
    if rounded is not None:
        tolerance = max(tolerance, rounded * _scale_of(delta.manifest.head))
    rounds = scheme in _ROUNDING or "bf16" in {base.precision, served.base.precision}
    comparison = _Comparison(delta, base, router, check, tolerance, scheme, rounds=rounds)
    reason: str | None = None
    try:
        read = _read_back(delta, blob, served.base)
        comparison.run(served, read, records)
    except EngineError as error:
        reason = error.message
    return Certificate(
        passed=reason is None and comparison.reason is None,
        rows=comparison.rows,
        largest_difference=comparison.largest,
        tolerance=comparison.tolerance,
        near_ties=comparison.near_ties,
        trained_precision=base.precision,
        served_precision=served.base.precision,
        digest=delta.digest,
        reason=reason or comparison.reason,
    )


def _read_back(delta: Delta, blob: bytes, base: Base) -> Delta:
    """The delta as an inference process would load it.

    Raises:
        EngineError: The file is not this delta, or does not fit the base.
    """
    read = load_delta(blob, device=base.device)
    if read.digest != delta.digest:
        raise EngineError(
            f"the file holds {read.digest[:19]}…, not {delta.digest[:19]}…",
            code="certificate_failed",
        )
    check_delta(
        read, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    return read


class _Comparison:
    """Both paths over the same rows."""

    def __init__(
        self,
        delta: Delta,
        base: Base,
        router: Router,
        check: Callable[[], None],
        tolerance: float,
        scheme: Quantization,
        *,
        rounds: bool,
    ) -> None:
        self._delta = delta.to(base.device)
        self._base = base
        self._forward = EvaluationForward(base, router, Actor.of(self._delta), check)
        self._rounds = rounds
        self._may_change = MAX_ROWS // _CHANGED_SHARE if scheme == "int8" else 0
        self._tolerance = tolerance
        self.tolerance = tolerance  # the most that any row was allowed
        self.rows = 0
        self.largest = 0.0
        self.near_ties = 0
        self.reason: str | None = None

    def run(self, served: Engine, read: Delta, records: Sequence[Record]) -> None:
        """Compare as many rows as there are to compare."""
        chosen = [records[place] for place in evenly_spaced(len(records), MAX_ROWS)]
        spec = self._delta.manifest.head
        if spec is not None:
            self._run_head(served, read, HEAD_TASKS[spec.kind], chosen)
        else:
            self._run_text(served, read, TASKS[self._delta.manifest.task], chosen)

    def _run_head(
        self, served: Engine, read: Delta, task: HeadTask, records: Sequence[Record]
    ) -> None:
        manifest = self._delta.manifest
        spec, length = manifest.head, manifest.max_length
        encoded = task.encode(self._base, records, labels=manifest.labels, max_length=length)
        cut = {example.record for example in encoded if example.cut_tokens}
        whole: list[int] = []
        rows: list[PreparedRow] = []
        for place, record in enumerate(records):
            row = None if place in cut else _prepare(served, Row(None, _input_of(record), read))
            if row is not None:
                whole.append(place)
                rows.append(row)
        outputs = iter(served.predict(list(_mixed(rows, read, served))))
        found = [output.output for output, _ in zip(outputs, rows, strict=False)]
        if spec is None:
            return
        head = Head(spec, self._delta.head, manifest.labels or ())
        for place, output in zip(whole, found, strict=True):
            own = [example for example in encoded if example.record == place]
            batch = collate(own, pad_id=self._base.text.pad_id, device=self._base.device)

            def answer(own: list[Example] = own, batch: Batch = batch) -> Any:
                logits = batch_logits(task, head, self._forward.hidden(batch), batch).cpu()
                return task.answer(head, own, split_logits(task, logits, own))

            self._compare(place, output, answer)

    def _run_text(self, served: Engine, read: Delta, task: Task, records: Sequence[Record]) -> None:
        length = self._delta.manifest.max_length
        rows: list[PreparedRow] = []
        prompts: list[list[int]] = []
        for record in records:
            asked = _prompt_of(record)
            if asked is None:
                continue
            example = task.encode(self._base, [record], labels=None, max_length=length)[-1]
            options = {"max_new_tokens": _WRITTEN_TOKENS}
            own = Row(None, asked, read, options)
            row = None if example.cut_tokens else _prepare(served, own)
            if row is not None:
                rows.append(row)
                prompts.append(_trained_prompt(example))
        if not rows:
            return
        written = served.write(list(_mixed(rows, read, served)))[: len(rows)]
        samplings = [Sampling(max_new_tokens=_WRITTEN_TOKENS)] * len(rows)
        expected = self._forward.generate(prompts, samplings)
        for place, (one, other) in enumerate(zip(written, expected, strict=True)):
            self._compare_text(place, prompts[place], one.choices[0].ids, other.ids)

    def _compare(self, place: int, found: Any, answer: Callable[[], Any]) -> None:
        self.rows += 1
        expected = answer()
        if list(_words(found)) != list(_words(expected)):
            if self._may_change > 0:
                self._may_change -= 1
                self.near_ties += 1
                return
            self._fail(f"row {place} is answered otherwise than the trainer answers it")
            return

        def distance(other: Any) -> float:
            pairs = zip(_numbers(other), _numbers(expected), strict=False)
            return max((abs(one - own) for one, own in pairs), default=0.0)

        self._note(place, distance(found), lambda: distance(answer()))

    def _compare_text(
        self, place: int, prompt: list[int], found: list[int], expected: list[int]
    ) -> None:
        self.rows += 1
        pairs = zip(found, expected, strict=False)
        parting = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if parting is None:
            if len(found) != len(expected):
                self._fail(f"row {place} ends otherwise than the trainer ends it")
            return
        written, two = expected[:parting], [expected[parting], found[parting]]

        def lead() -> float:
            logits = self._next_logits(prompt, written)
            return float(logits[two[0]] - logits[two[1]])

        own = lead()
        allowed = self._note(place, abs(own), lambda: abs(lead() - own))
        self.near_ties += abs(own) <= allowed

    def _next_logits(self, prompt: list[int], written: list[int]) -> torch.Tensor:
        """(V,) of the token after a prompt and what was written, by the trainer's forward."""
        start = self._base.text.answer_start
        if start is None:
            row = TokenRow([*prompt, *written])
        else:
            row = TokenRow(prompt, decoder_ids=[*start, *written])
        batch = collate([Example((row,))], pad_id=self._base.text.pad_id, device=self._base.device)
        return self._base.vocabulary_logits(self._forward.hidden(batch)[:, -1])[0]

    def _note(self, place: int, difference: float, moved: Callable[[], float]) -> float:
        """Judge a difference.

        Args:
            place: Of the row.
            difference: Between the two paths.
            moved: Asks the trainer again, and tells how far that is from before.

        Returns:
            How much is allowed.
        """
        self.largest = max(self.largest, difference)
        allowed = self._tolerance
        if self._rounds and allowed < difference < math.inf:
            for seed in range(_NUDGES):
                with _nudged(self._base, seed):
                    allowed = max(allowed, _NUDGED_FACTOR * moved())
            self.tolerance = max(self.tolerance, allowed)
        if not difference <= allowed:
            self._fail(
                f"row {place} differs by {difference:.3g} from the trainer, "
                f"{allowed:.3g} is allowed"
            )
        return allowed

    def _fail(self, reason: str) -> None:
        self.reason = self.reason or reason


@contextmanager
def _nudged(base: Base, seed: int) -> Iterator[None]:
    """Move what enters a base by about its last bit, as another batch or kernel might."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(_: nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(embedded.shape, generator=generator).to(embedded)
        return embedded * (1 + torch.finfo(embedded.dtype).eps * noise)

    handle = base.model.get_input_embeddings().register_forward_hook(nudge)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def _prepare(served: Engine, row: Row) -> PreparedRow | None:
    """The row as a request would be, or None where serving refuses it as too long.

    Raises:
        RowError: It is refused for another reason.
    """
    try:
        return prepare_row(served.base, row)
    except RowError as error:
        if error.code != "too_long":
            raise
        return None


def _mixed(rows: Sequence[PreparedRow], read: Delta, served: Engine) -> Iterator[PreparedRow]:
    """The rows, then neighbours that must leave no trace in them: another delta and the base."""
    yield from rows
    others = {
        name: tensor * _DECOY_FACTOR if tensor.is_floating_point() else tensor
        for name, tensor in read.tensors.items()
    }
    decoy = Delta.of(others, read.manifest)
    for row in rows[: max(1, len(rows) // 4)]:
        yield PreparedRow(row.kind, decoy, row.examples, row.task, row.samplings)
    writes = bool(rows) and rows[0].kind == "generate"
    if writes or served.base.architecture == "encoder":
        for row in rows[:1]:
            plain = row.examples[:1]
            yield PreparedRow(
                "generate" if writes else "embed", None, plain, samplings=row.samplings
            )


def _scale_of(head: AnyHeadSpec | None) -> float:
    """How much more than probabilities the numbers of a head, or the logits of text, may differ."""
    if head is None:
        return _WIDER_FOR_LOGITS
    return _WIDER_FOR_LOGITS * head.spread if isinstance(head, ValueHeadSpec) else 1.0


def _input_of(record: Record) -> dict[str, Any]:
    asked = {name: value for name, value in record.items() if name not in _TARGETS}
    if "choices" in asked:
        asked.pop("answer", None)
    return asked


def _prompt_of(record: Record) -> dict[str, Any] | None:
    """What a client would send of a record that generates; None for plain text."""
    if "prompt" in record:
        return {"prompt": record["prompt"]}
    messages = record.get("messages")
    return {"messages": list(messages[:-1])} if messages and len(messages) > 1 else None


def _trained_prompt(example: Example) -> list[int]:
    """Tokens before the last answer, as training saw them."""
    row = example.rows[0]
    if row.decoder_ids is not None:
        return list(row.input_ids)
    learned: list[bool] = example.target
    end = len(learned)
    while not learned[end - 1]:
        end -= 1
    start = end
    while start > 0 and learned[start - 1]:
        start -= 1
    return list(row.input_ids[:start])


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _numbers(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value) if math.isfinite(value) else math.inf


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield key
            yield from _words(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str | bool):
        yield str(value)
