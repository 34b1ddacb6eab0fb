"""Row lengths in tokens: as the base models count them, or by an estimate."""

from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from peft_engine.records.options import TokenMeasure
from peft_engine.records.problems import NoticeList
from peft_engine.records.report import TokenReport

# Texts are counted in batches, which is what tokenizers are fast at.
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 2_000_000
# Percentiles do not move any more after so many rows; later rows are counted only when they may
# be over a limit, so that a large upload is not tokenized twice as a whole.
_MEASURED_ROWS = 20_000
# English text under common subword vocabularies: about four characters a token.
_CHARACTERS_PER_TOKEN = 4
ESTIMATE = "estimate"
# Where a job cuts unless it asks for more; a long context is read in windows and never cut.
_JOB_LIMITS: Mapping[str, int | None] = MappingProxyType(
    {"text-generation": 1_024, "question-answering": None}
)
_JOB_LIMIT = 256


def estimate(task: str) -> TokenMeasure:
    """A measure for when no base model's tokenizer is at hand.

    Args:
        task: Decides the limit, which is that of a job that does not ask for another.

    Returns:
        Counts a quarter of the characters.
    """
    return TokenMeasure(
        ESTIMATE,
        _JOB_LIMITS.get(task, _JOB_LIMIT),
        lambda texts: [-(-len(text) // _CHARACTERS_PER_TOKEN) for text in texts],
    )


class TokenCensus:
    """Counts tokens of each row under every measure.

    Args:
        measures: One for each base model.
        notices: Where rows over the limit are named.
    """

    def __init__(self, measures: Sequence[TokenMeasure], notices: NoticeList) -> None:
        self._measures = measures
        self._notices = notices
        self._lengths = {m.base: array("q") for m in measures}
        self._over = dict.fromkeys(self._lengths, 0)
        self._waiting: list[tuple[str | None, int, str]] = []
        self._waiting_characters = 0
        self._seen = 0

    def add(self, text: str, file: str | None, line: int) -> None:
        """Count one row (in a batch, later).

        Args:
            text: All that a model reads of it.
            file: Which upload.
            line: Its physical line.
        """
        self._seen += 1
        limits = [m.max_tokens for m in self._measures if m.max_tokens is not None]
        if self._seen > _MEASURED_ROWS and not any(len(text) > limit for limit in limits):
            return
        self._waiting.append((file, line, text))
        self._waiting_characters += len(text)
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_characters = self._waiting, [], 0
        for measure in self._measures:
            counts = measure.count([text for _, _, text in waiting])
            lengths = self._lengths[measure.base]
            for (file, line, _), count in zip(waiting, counts, strict=True):
                if len(lengths) < _MEASURED_ROWS:
                    lengths.append(count)
                if measure.max_tokens is not None and count > measure.max_tokens:
                    self._over[measure.base] += 1
                    self._tell(measure, file, line)

    def _tell(self, measure: TokenMeasure, file: str | None, line: int) -> None:
        base = "an estimate" if measure.base == ESTIMATE else measure.base
        self._notices.add(
            "row_too_long",
            f"by {base}, rows are over the length limit of {measure.max_tokens} tokens and will be "
            "cut there (of a prompt the beginning, then of a completion the end)",
            "shorten them, cut them into several rows, or raise training.max_length if the base "
            "allows it",
            file=file,
            line=line,
            about=measure.base,
        )

    def report(self) -> dict[str, TokenReport]:
        """Percentiles of each base.

        Returns:
            Base name to report; bases without a row are absent.
        """
        if self._waiting:
            self._flush()
        reports = {}
        for measure in self._measures:
            lengths = np.array(self._lengths[measure.base], dtype=np.int64)
            if not len(lengths):
                continue
            p50, p90, p99 = np.percentile(lengths, [50, 90, 99], method="higher").tolist()
            reports[measure.base] = TokenReport(
                p50=p50,
                p90=p90,
                p99=p99,
                max=int(lengths.max()),
                mean=round(float(lengths.mean()), 2),
                limit=measure.max_tokens,
                over_limit_rows=self._over[measure.base],
                measured_rows=len(lengths),
            )
        return reports
