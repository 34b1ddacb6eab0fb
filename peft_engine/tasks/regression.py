"""Regression: one number for a text or a pair of texts.

The head works in standardised units: mean and standard deviation of the training values stand in
its specification. It starts as the ridge regression that fits the frozen features best.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import pool
from peft_engine.configs.manifest import AnyHeadSpec, ValueHeadSpec
from peft_engine.errors import ConfigError, RowError
from peft_engine.parts.batching import Batch, Example
from peft_engine.parts.fits import fit_ridge
from peft_engine.parts.statistics import (
    Evaluation,
    Floats,
    RankCorrelation,
    Resampled,
    RowStatistics,
    evaluation_of,
    mean_of_rows,
)
from peft_engine.tasks.pairs import (
    join_texts,
    pair_features,
    reading_of,
    text_features,
)
from peft_engine.tasks.passes import (
    batch_logits,
    check_length,
    encode_rows,
    evaluate_with_head,
    need_head,
    read_texts,
    stack_one,
)
from peft_engine.tasks.protocol import (
    Baseline,
    Encoded,
    FeatureSource,
    Forward,
    Frozen,
    Head,
    LossSum,
    Record,
    spec_of,
)

# Legend of axes: B rows of a batch, N examples, T tokens, D width.

BEFORE_MEAN = "the mean of the training values, no model"
BEFORE_COSINE = (
    "cosine of the two texts' features by the frozen base, put on the scale of the values by a "
    "straight line through the training rows"
)


class Regression:
    """One number a text or pair."""

    name = "regression"
    kind = "value"
    metric = "pearson"
    metrics: tuple[str, ...] = ("loss", "pearson", "spearman", "rmse", "mae", "r2")
    weighs_classes = False
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> None:  # noqa: ARG002  protocol
        """Numbers have no classes; see ``Task.find_labels``."""
        return

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
        max_length: int,
    ) -> list[Example]:
        """One row a text, or for pairs one or two; see ``Task.encode`` and ``pairs``."""
        apart = reading_of(base) == "apart"
        return [
            _encode_record(base, record, place, apart=apart, max_length=max_length)
            for place, record in enumerate(records)
        ]

    def encode_input(
        self, base: Base, value: Any, *, max_length: int, spec: AnyHeadSpec | None = None
    ) -> list[Example]:
        """``"text"`` or ``{"text", "text_pair"}``; see ``HeadTask.encode_input``.

        Raises:
            RowError: The adapter compares two texts and there is one.
        """
        record = read_texts(value)
        reading = reading_of(base) if spec is None else spec_of(spec, ValueHeadSpec).reading
        if spec is not None and reading == "apart" and record.get("text_pair") is None:
            raise RowError(
                'this adapter compares two texts; give {"text", "text_pair"}',
                code="bad_input",
                param="input.text_pair",
            )
        apart = reading == "apart"
        for text in _inputs(base, record, apart=apart):
            check_length(base.text.count_input_tokens(text), max_length)
        return [_encode_record(base, record, 0, apart=apart, max_length=max_length)]

    def first_head(
        self,
        frozen: Frozen,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
    ) -> Head:
        """Ridge regression on standardised values; see ``HeadTask.first_head``."""
        values = _values(examples)
        spread = float(values.std())
        spec = ValueHeadSpec(
            pooling=frozen.base.pooling.mode,
            reading="apart" if any(len(e.rows) > 1 for e in examples) else "joined",
            center=float(values.mean()),
            spread=spread if spread > 0 else 1.0,
        )
        targets = torch.from_numpy((values - spec.center) / spec.spread)
        features = frozen.features(self, spec, examples)
        known = features.shape[1] - 1 if spec.reading == "apart" else None  # the cosine
        return Head(spec, fit_ridge(features, targets, known=known), ())

    def extend_head(
        self,
        tuned: FeatureSource,  # noqa: ARG002  protocol
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
    ) -> Head:
        """The same head, or a refusal; see ``GrowingTask.extend_head``.

        Raises:
            ConfigError: The head reads single texts and the rows are pairs, or the reverse.
        """
        apart = any(len(example.rows) > 1 for example in examples)
        if apart != (spec_of(head.spec, ValueHeadSpec).reading == "apart"):
            own, new = ("single texts", "pairs") if apart else ("pairs", "single texts")
            raise ConfigError(
                f"the parent was trained on {own} and these rows are {new}",
                code="parent_mismatch",
                param="dataset_id",
            )
        return head

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """(N, D) or (N, 2D + 1); see ``HeadTask.features``."""
        own = spec_of(spec, ValueHeadSpec)
        pooled = pool(hidden, batch.mask, mode=own.pooling, normalize=own.normalize)  # (B, D)
        first = batch.first_rows
        if own.reading == "joined":
            return pooled[first]
        last = [row + len(e.rows) - 1 for row, e in zip(first, batch.examples, strict=True)]
        return pair_features(pooled[first], pooled[last])

    def count_features(self, example: Example) -> int:  # noqa: ARG002  protocol
        """One; see ``HeadTask.count_features``."""
        return 1

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(N, 1) values in standardised units; see ``HeadTask.logits``."""
        return linear(features, head.tensors["weight"], head.tensors["bias"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,  # noqa: ARG002  protocol
        class_weights: Tensor | None = None,  # noqa: ARG002  protocol
    ) -> LossSum:
        """Squared error in standardised units; see ``Task.loss``."""
        spec = spec_of(need_head(head).spec, ValueHeadSpec)
        # In fp64, since fp32 has one number for values that lie close together far from 0 (times),
        # and on the host, since not every device has fp64.
        values = torch.tensor(batch.targets, dtype=torch.float64)  # (N,)
        wanted = ((values - spec.center) / spec.spread).to(hidden.device, torch.float32)
        errors = batch_logits(self, head, hidden, batch).squeeze(-1) - wanted  # (N,)
        return LossSum(errors.square().sum(), len(batch.targets))

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
        """See ``evaluate_values`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """See ``evaluate_values``."""
        spec = spec_of(head.spec, ValueHeadSpec)
        found = stack_one(logits)[:, 0].double().numpy() * spec.spread + spec.center
        return evaluate_values(found, _values(examples), spread=spec.spread)

    def baselines(
        self, frozen: Frozen, head: Head, train: Encoded, asked: Encoded
    ) -> tuple[Baseline, ...]:
        """The training mean, and for pairs the cosine; see ``HeadTask.baselines``."""
        spec = spec_of(head.spec, ValueHeadSpec)
        wanted, known = _values(asked.examples), _values(train.examples)
        guesses = {BEFORE_MEAN: np.full(len(wanted), spec.center)}
        if all("text_pair" in r for r in (*train.records, *asked.records)):
            seen = self._cosines(frozen, spec, train.records)
            found = self._cosines(frozen, spec, asked.records)
            variance = float(seen.var())
            slope = float(np.cov(seen, known, bias=True)[0, 1]) / variance if variance > 0 else 0.0
            guesses[BEFORE_COSINE] = spec.center + slope * (found - seen.mean())
        return tuple(
            Baseline(evaluate_values(values, wanted, spread=spec.spread), what, len(wanted))
            for what, values in guesses.items()
        )

    def _cosines(self, frozen: Frozen, spec: ValueHeadSpec, records: Sequence[Record]) -> Floats:
        """(N,) cosines of the features of both texts, each read alone."""
        alone = spec.model_copy(update={"reading": "joined"})
        limit = min(frozen.base.max_length, self.max_length_tokens)
        sides = [
            text_features(frozen, self, alone, [str(r[name]) for r in records], max_length=limit)
            for name in ("text", "text_pair")
        ]
        cosines: Floats = (sides[0] * sides[1]).sum(-1).double().numpy()
        return cosines

    def answer(
        self,
        head: Head,
        examples: Sequence[Example],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> dict[str, Any]:
        """``value``; see ``HeadTask.answer``."""
        spec = spec_of(head.spec, ValueHeadSpec)
        return {"value": spec.center + spec.spread * float(logits[0][0, 0])}

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:  # noqa: ARG002
        """Numbers have no classes; see ``HeadTask.count_classes``."""
        return torch.zeros(0)


def evaluate_values(found: Floats, wanted: Floats, *, spread: float) -> Evaluation:
    """Metrics of predicted numbers.

    Args:
        found: (N,) predictions.
        wanted: (N,) targets.
        spread: Standard deviation of the training values.

    Returns:
        ``loss`` (mean squared error in standardised units), ``pearson`` and ``spearman``
        correlation (0 where one side is constant), ``rmse`` and ``mae`` in the units of the
        values, and ``r2`` (0 where all targets are equal).
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    errors = found - wanted
    rows: dict[str, Resampled] = {
        "loss": mean_of_rows((errors / spread) ** 2),
        "pearson": _correlation_rows(found, wanted),
        "spearman": RankCorrelation(found, wanted),
        "rmse": _root_mean_rows(errors**2),
        "mae": mean_of_rows(np.abs(errors)),
        "r2": _explained_rows(errors, wanted),
    }
    values = {
        "pearson": _correlation(pearsonr, found, wanted),
        "spearman": _correlation(spearmanr, found, wanted),
        "rmse": float(root_mean_squared_error(wanted, found)),
        "mae": float(mean_absolute_error(wanted, found)),
    }
    return evaluation_of(rows, values=values)


def _correlation(measure: Any, found: Floats, wanted: Floats) -> float:
    if len(found) < 2 or _is_constant(found) or _is_constant(wanted):
        return 0.0
    return float(measure(found, wanted).statistic)


def _correlation_rows(found: Floats, wanted: Floats) -> RowStatistics:
    """(N, 6): 1, x, y, x², y², xy, each side standardised first, which changes nothing."""
    x, y = _standardised(found), _standardised(wanted)

    def reduce(sums: Floats) -> Floats:
        count, sum_x, sum_y, squares_x, squares_y, products = sums.T
        covariance = products - sum_x * sum_y / count
        variances = (squares_x - sum_x**2 / count) * (squares_y - sum_y**2 / count)
        # below it a resample of equal values is left over from rounding
        real = variances > 1e-20 * count**2
        value: Floats = np.where(real, covariance / np.sqrt(np.where(real, variances, 1)), 0.0)
        return value

    return RowStatistics(np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1), reduce)


def _root_mean_rows(squares: Floats) -> RowStatistics:
    """Root of the mean of (N,) squares."""
    rows = mean_of_rows(squares)
    return RowStatistics(rows.values, lambda sums: np.sqrt(rows.reduce(sums)))


def _explained_rows(errors: Floats, wanted: Floats) -> RowStatistics:
    """(N, 4): 1, y, y², e²; share of the variance of the targets that is explained."""
    y, scale = _standardised(wanted), float(wanted.std()) or 1.0

    def reduce(sums: Floats) -> Floats:
        count, sum_y, squares_y, squares = sums.T
        spread = squares_y - sum_y**2 / count
        real = spread > 1e-10 * count
        value: Floats = np.where(real, 1 - squares / np.where(real, spread, 1), 0.0)
        return value

    squares = (errors / scale) ** 2
    return RowStatistics(np.stack([np.ones(len(y)), y, y * y, squares], 1), reduce)


def _is_constant(values: Floats) -> bool:
    """Whether values differ by no more than rounding, as scipy draws the line."""
    middle = float(values.mean())
    return bool(np.linalg.norm(values - middle) <= 1e-13 * abs(middle))


def _standardised(values: Floats) -> Floats:
    """Mean 0 and variance 1; zeros where all are equal."""
    if _is_constant(values):
        return np.zeros_like(values)
    moved: Floats = (values - values.mean()) / values.std()
    return moved


def _values(examples: Sequence[Example]) -> Floats:
    """(N,) targets."""
    return np.array([example.target for example in examples], dtype=np.float64)


def _inputs(base: Base, record: Record, *, apart: bool) -> list[str | tuple[str, str]]:
    """What each row holds."""
    text, pair = str(record["text"]), record.get("text_pair")
    if pair is None:
        return [text]
    return [text, str(pair)] if apart else [join_texts(base, text, str(pair))]


def _encode_record(
    base: Base, record: Record, place: int, *, apart: bool, max_length: int
) -> Example:
    value = None if record.get("value") is None else float(record["value"])
    rows = encode_rows(base, _inputs(base, record, apart=apart), max_length=max_length)
    return Example(tuple(row for row, _ in rows), value, sum(cut for _, cut in rows), place)
