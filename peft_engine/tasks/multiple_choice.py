"""Multiple choice: which of several choices answers a question.

One score for each choice, softmax over the choices of a question, however many there are. Sentence
encoders read the question once and every choice in a row of its own, and the head starts from the
cosine of both; other bases read one row a choice, the question before it. See ``pairs``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, ChoiceHeadSpec, Reading
from peft_engine.errors import RowError
from peft_engine.parts.batching import Batch, Example
from peft_engine.parts.choice_fits import fit_choices
from peft_engine.parts.fits import CENTROID_SCALE
from peft_engine.parts.statistics import (
    Evaluation,
    Floats,
    calibration_error,
    evaluation_of,
    mean_of_rows,
)
from peft_engine.tasks.likelihood import BEFORE_CHOICE_LIKELIHOOD, score_choices
from peft_engine.tasks.pairs import (
    join_texts,
    pair_features,
    reading_of,
    text_features,
    unit_features,
)
from peft_engine.tasks.passes import (
    batch_logits,
    check_length,
    encode_rows,
    evaluate_with_head,
    read_object,
)
from peft_engine.tasks.protocol import (
    Baseline,
    Encoded,
    Forward,
    Frozen,
    Head,
    LossSum,
    Record,
    spec_of,
)

# Legend of axes: B rows of a batch, N examples, S choices of an example, F choices of all examples,
# T tokens, D width.

MAX_CHOICES = 256
BEFORE_COSINE = "the choice whose feature by the frozen base is nearest to the question's (cosine)"
BEFORE_PLACE = "the place at which the right choice stands most often in training, no model"
_SHAPE = '{"question", "choices"}'


class MultipleChoice:
    """One right choice among several."""

    name = "multiple-choice"
    kind = "choice"
    metric = "accuracy"
    metrics: tuple[str, ...] = ("loss", "accuracy", "ece")
    weighs_classes = False
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> None:  # noqa: ARG002  protocol
        """Choices are no classes; see ``Task.find_labels``."""
        return

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
        max_length: int,
    ) -> list[Example]:
        """One row a choice, and one for the question where it stands apart; see ``Task.encode``."""
        reading = reading_of(base)
        examples = []
        for place, record in enumerate(records):
            rows = encode_rows(base, _inputs(base, record, reading), max_length=max_length)
            cut = sum(tokens for _, tokens in rows)
            target, choices = record.get("answer"), len(record["choices"])
            examples.append(Example(tuple(row for row, _ in rows), target, cut, place, choices))
        return examples

    def encode_input(
        self,
        base: Base,
        value: Any,
        *,
        max_length: int,
        spec: AnyHeadSpec | None = None,  # noqa: ARG002  protocol
    ) -> list[Example]:
        """``{"question", "choices"}``; see ``HeadTask.encode_input``.

        Raises:
            RowError: Choices that cannot be chosen from.
        """
        record = read_object(value, _SHAPE, texts=("question",))
        choices = record.get("choices")
        if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES:
            raise RowError(
                f"choices must be a list of 2 to {MAX_CHOICES} texts",
                code="bad_input",
                param="input.choices",
            )
        for place, choice in enumerate(choices):
            if not isinstance(choice, str) or not choice.strip():
                raise RowError(
                    "every choice must be a text",
                    code="bad_input",
                    param=f"input.choices.{place}",
                )
        for text in _inputs(base, record, reading_of(base)):
            check_length(base.text.count_input_tokens(text), max_length)
        return self.encode(base, [record], labels=None, max_length=max_length)

    def first_head(
        self,
        frozen: Frozen,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
    ) -> Head:
        """See ``fit_choices``, from the cosine where there is one, and ``HeadTask.first_head``."""
        reading = reading_of(frozen.base)
        spec = ChoiceHeadSpec(pooling=frozen.base.pooling.mode, reading=reading)
        features = frozen.features(self, spec, examples)  # (F, D)
        start = torch.zeros(1, features.shape[1])
        if reading == "apart":
            start[0, -1] = CENTROID_SCALE
        weight = fit_choices(
            features,
            [example.layout for example in examples],
            [example.target for example in examples],
            start=start,
            check=frozen.check,
        )
        return Head(spec, {"weight": weight}, ())

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """(F, D) or (F, 2D + 1), one for each choice; see ``HeadTask.features``."""
        own = spec_of(spec, ChoiceHeadSpec)
        pooled = unit_features(hidden, batch, mode=own.pooling)  # (B, D)
        if own.reading == "joined":
            return pooled
        starts = list(zip(batch.first_rows, batch.examples, strict=True))
        questions = [row for row, example in starts for _ in range(example.layout)]
        choices = [row + 1 + i for row, example in starts for i in range(example.layout)]
        return pair_features(pooled[questions], pooled[choices])

    def count_features(self, example: Example) -> int:
        """Its choices; see ``HeadTask.count_features``."""
        return int(example.layout)

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(F, 1) scores; see ``HeadTask.logits``."""
        return linear(features, head.tensors["weight"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
        class_weights: Tensor | None = None,  # noqa: ARG002  protocol
    ) -> LossSum:
        """Cross entropy over the choices of each question; see ``Task.loss``."""
        scores = batch_logits(self, head, hidden, batch).squeeze(-1)  # (F,)
        sizes = [example.layout for example in batch.examples]
        each = torch.split(scores, sizes)
        losses = [
            cross_entropy(
                own, torch.tensor(target, device=own.device), label_smoothing=label_smoothing
            )
            for own, target in zip(each, batch.targets, strict=True)
        ]
        return LossSum(torch.stack(losses).sum(), len(losses))

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,
        examples: Sequence[Example],
        records: Sequence[Record],
        *,
        batch_size: int,
        generate_rows: int,  # noqa: ARG002  protocol
    ) -> Evaluation:
        """See ``evaluate_choices`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,  # noqa: ARG002  protocol
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """See ``evaluate_choices``."""
        return evaluate_choices([own.squeeze(-1) for own in logits], [e.target for e in examples])

    def baselines(
        self, frozen: Frozen, head: Head, train: Encoded, asked: Encoded
    ) -> tuple[Baseline, ...]:
        """Cosine, usual place, and choices by likelihood; see ``HeadTask.baselines``."""
        records, targets = asked.records, [example.target for example in asked.examples]
        limit = min(frozen.base.max_length, self.max_length_tokens)
        counts = torch.bincount(torch.tensor([e.target for e in train.examples])).double()
        most = max(len(record["choices"]) for record in records)
        # one right answer added to each place, so that all are finite
        places = (pad(counts, (0, max(0, most - len(counts)))) + 1).log()
        guesses = {
            BEFORE_COSINE: self._cosines(frozen, head, records, limit),
            BEFORE_PLACE: [places[: len(record["choices"])] for record in records],
        }
        found = [
            Baseline(evaluate_choices(scores, targets), what, len(records))
            for what, scores in guesses.items()
        ]
        if frozen.base.generates:
            scored = score_choices(frozen, records, max_length=limit)
            own = evaluate_choices(scored.scores, [targets[row] for row in scored.rows])
            found.insert(0, Baseline(own, BEFORE_CHOICE_LIKELIHOOD, len(scored.rows)))
        return tuple(found)

    def _cosines(
        self, frozen: Frozen, head: Head, records: Sequence[Record], limit: int
    ) -> list[Tensor]:
        """(S,) scaled cosines of the frozen features of each question and its choices."""
        alone = spec_of(head.spec, ChoiceHeadSpec).model_copy(update={"reading": "joined"})
        texts = [str(record["question"]) for record in records]
        texts += [str(choice) for record in records for choice in record["choices"]]
        # a text alone is like a question with one choice
        found = text_features(frozen, self, alone, texts, max_length=limit)
        questions, choices = found[: len(records)], found[len(records) :]
        each = torch.split(choices, [len(record["choices"]) for record in records])
        return [CENTROID_SCALE * own @ q for own, q in zip(each, questions, strict=True)]

    def answer(
        self,
        head: Head,  # noqa: ARG002  protocol
        examples: Sequence[Example],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> dict[str, Any]:
        """``answer``, counted from 0, and ``scores``; see ``HeadTask.answer``."""
        shares = logits[0].squeeze(-1).softmax(-1).tolist()
        return {"answer": shares.index(max(shares)), "scores": shares}

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:  # noqa: ARG002
        """Choices are no classes; see ``HeadTask.count_classes``."""
        return torch.zeros(0)


def evaluate_choices(scores: Sequence[Tensor], targets: Sequence[int]) -> Evaluation:
    """Metrics of scored choices.

    Args:
        scores: (S,) of each question, on the CPU.
        targets: The right choice of each.

    Returns:
        ``loss`` (mean cross entropy over the choices of a question, in nats), ``accuracy`` (of
        equal scores the first counts as given) and ``ece``, the calibration error.
    """
    losses: Floats = np.array(
        [
            float(cross_entropy(own.double(), torch.tensor(target)))
            for own, target in zip(scores, targets, strict=True)
        ]
    )
    right = np.array([float(int(s.argmax()) == t) for s, t in zip(scores, targets, strict=True)])
    sure = np.array([float(own.double().softmax(-1).max()) for own in scores])
    return evaluation_of(
        {
            "loss": mean_of_rows(losses),
            "accuracy": mean_of_rows(right),
            "ece": calibration_error(sure, right),
        }
    )


def _inputs(base: Base, record: Record, reading: Reading) -> list[str | tuple[str, str]]:
    question, choices = str(record["question"]), [str(choice) for choice in record["choices"]]
    if reading == "apart":
        return [question, *choices]
    return [join_texts(base, question, choice) for choice in choices]
