"""Whether the rows of a job's batches are packed, and why not."""

import itertools
from collections.abc import Iterator, Sequence

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.errors import ConfigError
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import Example, epoch_batches
from peft_engine.parts.packing import pack
from peft_engine.training.choices import Choice

_LEAST_SAVING = 0.05
"""Share of the positions that packing must save before ``auto`` takes it: well above what it costs
to lay rows out anew for attention, 1 % of a step of ``smollm2`` by torch's profiler."""

_SAMPLED_BATCHES = 20
"""Batches of the first epoch by which ``auto`` judges: milliseconds of counting."""


def resolve_packing(
    spec: JobSpec, base: Base, examples: Sequence[Example], *, batch_size: int
) -> Choice[bool]:
    """Decide.

    Args:
        spec: The job.
        base: The base, loaded.
        examples: Training examples, encoded.
        batch_size: Examples of a batch.

    Returns:
        What the job asks for; of ``auto`` True on a CPU, the only device that was measured, where
        it leaves out enough positions.

    Raises:
        ConfigError: The job asks for packing and cannot be packed (``packing_impossible``).
    """
    asked = spec.training.packing
    if asked is False:
        return Choice(False)
    reason = next(_reasons_against(spec, base), None)
    if reason is not None and asked is True:
        raise ConfigError(
            f"rows cannot be packed: {reason}; leave packing at auto",
            code="packing_impossible",
            param="training.packing",
        )
    if asked is True:
        return Choice(True)
    if reason is not None:
        return Choice(False, reason)
    if base.device.type != "cpu":
        return Choice(False, f"it was not measured to pay on {base.device.type}")
    saved = _saved_share(spec, base, examples, batch_size)
    out = f"out {100 * saved:.1f} % of the positions"
    if saved >= _LEAST_SAVING:
        return Choice(True, f"it leaves {out}")
    return Choice(False, f"it would leave {out}, fewer than {100 * _LEAST_SAVING:g} %")


def _reasons_against(spec: JobSpec, base: Base) -> Iterator[str]:
    if base.architecture != "causal":
        yield f"{base.name} is no causal base, so that every token looks at all of its row"
    if not base.packs:
        yield f"the attention of {base.name} cannot be given packed rows"
    for method in spec.method:
        if not METHODS[method.type].treats_tokens_alone:
            yield f"the method {method.type} acts on attention"
    if spec.training.adversarial is not None:
        yield "adversarial training moves the embeddings of each row on its own"


def _saved_share(spec: JobSpec, base: Base, examples: Sequence[Example], batch_size: int) -> float:
    """Share of the padded positions that packing leaves out, over some batches."""
    order = epoch_batches(examples, batch_size=batch_size, seed=spec.training.seed, epoch=0)
    share = not any(getattr(method, "dropout", 0.0) > 0 for method in spec.method)
    padded = nodes = 0
    for batch in itertools.islice(order, _SAMPLED_BATCHES):
        rows = [row.input_ids for place in batch for row in examples[place].rows]
        padded += len(rows) * max(map(len, rows))
        nodes += pack(rows, share=share, device=base.device).input_ids.shape[1]
    return 1 - nodes / padded
