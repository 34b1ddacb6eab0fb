"""How long the texts take that an evaluation writes. Nobody knows how long they will be."""

from collections.abc import Sequence

from peft_engine.generation import Sampling
from peft_engine.tasks.protocol import Record
from peft_engine.tasks.text_generation import AnswerBatch, answer_batches, references_of
from peft_engine.training.estimating.spread import Spread
from peft_engine.training.estimating.timing import Measured, count_validations
from peft_engine.training.evaluations import writes_texts
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.prepare import EVALUATION_ROWS

_SHORT_TOKENS, _LONGER_TOKENS = 2, 8
"""Of two answers: their difference is the time of tokens, the rest that of the prompt."""


def time_writing(of: Measured) -> Spread:
    """Texts of the evaluations during training and of the reports.

    Args:
        of: The job.

    Returns:
        Seconds of all of them. At least: as long as the longest reference of those that are written
        side by side; at most: as long as an answer may be; likely: the tuned model writes the
        former and the untuned one the latter.
    """
    if not writes_texts(of.job.task):
        return Spread.of(0.0)
    validated = of.job.resolved.validation_generate_rows
    total = Spread.of(0.0)
    for name, count in (("validation", validated), ("test", of.spec.training.eval_generate_rows)):
        records = of.job.splits[name].records
        if count and records:
            once = _time_answers(of, records, count)
            tuned = Spread(once.low, once.low, once.high)
            untuned = Spread(once.high, once.low, once.high)
            total = Spread.total([total, tuned, untuned])
            if name == "validation":
                total = Spread.total([total, tuned.times(count_validations(of.job))])
    return total


def _time_answers(of: Measured, records: Sequence[Record], count: int) -> Spread:
    batches = list(answer_batches(of.base, records, count, batch_size=EVALUATION_ROWS))
    if not batches:
        return Spread.of(0.0)
    prompt_seconds, token_seconds = _time_batch(of, batches[0])
    found = []
    for batch in batches:
        share = _prompt_positions(batch) / _prompt_positions(batches[0])
        references = [text for record in batch.records for text in references_of(record)]
        longest = max(len(of.base.text.encode_plain(text)) + 1 for text in references)
        low, high = min(longest, batch.most_tokens), batch.most_tokens
        seconds = [share * prompt_seconds + token_seconds * tokens for tokens in (low, high)]
        found.append(Spread(seconds[1], *seconds))
    return Spread.total(found)


def _prompt_positions(batch: AnswerBatch) -> int:
    return len(batch.prompts) * max(map(len, batch.prompts))


def _time_batch(of: Measured, batch: AnswerBatch) -> tuple[float, float]:
    """Seconds of the prompts, and of one more token of every row."""
    actor = of.job.trainable.actor(training=False)
    forward = EvaluationForward(of.base, of.router, actor, of.check)
    seconds, lengths = [], []
    for tokens in (_SHORT_TOKENS, _LONGER_TOKENS):
        started = of.clock()
        most = Sampling(max_new_tokens=min(tokens, batch.most_tokens))
        answers = forward.generate(batch.prompts, [most] * len(batch.prompts))
        seconds.append(of.clock() - started)
        lengths.append(max(len(answer.ids) for answer in answers))
    more = lengths[1] - lengths[0]
    if more <= 0:  # all ended at once: nothing tells prompt and tokens apart
        return 0.0, seconds[1] / max(lengths[1], 1)
    token = max(seconds[1] - seconds[0], 0.0) / more
    return max(seconds[1] - token * lengths[1], 0.0), token
