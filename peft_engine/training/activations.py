"""What a job does with activations: which it keeps from epoch to epoch, which it computes twice.

Neither changes what is learned, so both are decided once the parameters are known.
"""

from collections.abc import Callable, Mapping, Sequence

from peft_engine.bases.base import Base
from peft_engine.bases.layers import all_layers, layer_stack
from peft_engine.configs.job import JobSpec
from peft_engine.delta import HEAD
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.parts.sites import layer_of, stack_paths
from peft_engine.tasks.protocol import Encoded
from peft_engine.training.choices import Choice
from peft_engine.training.frozen_layers import FrozenLayers, distinct_tokens
from peft_engine.training.resolve import Resolved
from peft_engine.training.trainable import Trainable

REUSE_LIMIT_BYTES = 1 << 30
"""Most that kept activations may take: as much again as a small base and its optimizer, so that a
machine on which the job fits by a margin does not run out because of a convenience."""

ACTIVATION_LIMIT_BYTES = 8 << 30
"""Activations of a step above which ``auto`` computes layers twice: half of a 16 GB device, the
other half being for the base. A constant and not what happens to be free, so that a job is
resolved alike on every machine."""
_PER_TOKEN, _PER_TOKEN_ACROSS = 34, 13
"""Bytes of 16-bit numbers that a layer keeps for each token and hidden dimension; 11 and 2 more for
attention across from a decoder to its encoder and the norm before it."""


def first_changed_layer(trainable: Trainable, layers: int) -> int:
    """Number of the lowest layer in which a job's methods act.

    Args:
        trainable: The parameters.
        layers: Layers of the base.

    Returns:
        0 also for a method outside the stack, whose place in the order is not known; ``layers``
        for a job that trains a head alone.
    """
    paths = {name.partition(":")[0] for name in (*trainable.tensors, *trainable.fixed)} - {HEAD}
    numbers = [layer_of(path) for path in paths]
    return min((0 if number is None else number for number in numbers), default=layers)


def settle_activations(
    base: Base,
    spec: JobSpec,
    trainable: Trainable,
    resolved: Resolved,
    splits: Mapping[str, Encoded],
    check: Callable[[], None],
) -> tuple[Resolved, FrozenLayers | None]:
    """Resolve ``reuse_frozen_layers`` and ``gradient_checkpointing``.

    Args:
        base: The base.
        spec: What is asked for.
        trainable: The parameters.
        resolved: Everything else, resolved.
        splits: Encoded splits by name.
        check: Called before each forward; may raise to interrupt.

    Returns:
        The settings complete, and the frozen layers to reuse, if they are.

    Raises:
        ConfigError: Reuse is asked for and not possible (``nothing_to_reuse``), or checkpoints are
            and the base has no layers that could be computed twice (``base_unsupported``).
    """
    layers = len(layer_stack(base))
    twice = _recomputes(base, spec, resolved, splits["train"].examples)
    resolved = resolved.settle(gradient_checkpointing=twice)
    asked = spec.training.reuse_frozen_layers
    if asked is False:
        return resolved, None
    if asked == "auto" and resolved.total_steps <= resolved.steps_per_epoch:
        once = f"no row is seen twice in {resolved.total_steps} steps"
        return resolved.settle(reuse_frozen_layers=Choice(False, once)), None
    try:
        frozen, size = _freeze(base, spec, trainable, splits, layers, check)
    except BaseModelError as error:
        if asked == "auto":
            return resolved.settle(reuse_frozen_layers=Choice(False, error.message)), None
        raise ConfigError(
            f"reuse_frozen_layers is not possible here: {error.message}",
            code="nothing_to_reuse",
            param="training.reuse_frozen_layers",
        ) from error
    fits = f"states below the lowest trained layer take {size:,} bytes of {REUSE_LIMIT_BYTES:,}"
    reused = Choice(True, fits if asked == "auto" else None)
    return resolved.settle(reuse_frozen_layers=reused, reused_bytes=Choice(size)), frozen


def _freeze(
    base: Base,
    spec: JobSpec,
    trainable: Trainable,
    splits: Mapping[str, Encoded],
    layers: int,
    check: Callable[[], None],
) -> tuple[FrozenLayers, int]:
    """The frozen layers, and the bytes that their kept states will take.

    Raises:
        BaseModelError: There are none, or their states do not fit.
    """
    if spec.training.adversarial is not None:
        raise BaseModelError(
            "adversarial training moves the embeddings below them", code="base_unsupported"
        )
    first = first_changed_layer(trainable, layers)
    if first == 0:
        raise BaseModelError("the method acts in the lowest layer", code="base_unsupported")
    width = base.hidden_size * next(base.trunk.parameters()).element_size()
    train, validation = (splits[name].examples for name in ("train", "validation"))
    own, all_ = (distinct_tokens(part) * width for part in (train, [*train, *validation]))
    if own > REUSE_LIMIT_BYTES:
        raise BaseModelError(
            f"the training rows' states take {own:,} bytes, more than {REUSE_LIMIT_BYTES:,}",
            code="base_unsupported",
        )
    fits = all_ <= REUSE_LIMIT_BYTES
    announced = [*train, *validation] if fits else train
    return FrozenLayers(base, first, announced, check), all_ if fits else own


def _recomputes(
    base: Base, spec: JobSpec, resolved: Resolved, examples: Sequence[Example]
) -> Choice[bool]:
    """Whether layers are computed twice.

    Raises:
        ConfigError: That is asked for, and the base has no stack of layers.
    """
    asked = spec.training.gradient_checkpointing
    layers = len(all_layers(base))
    lack = f"{base.info.model_type} has no stack of layers that could be computed twice"
    if layers == 0 and asked is True:
        raise ConfigError(
            f"gradient_checkpointing is not possible: {lack}",
            code="base_unsupported",
            param="training.gradient_checkpointing",
        )
    if asked != "auto":
        return Choice(asked)
    if layers == 0:
        return Choice(False, lack)
    rows = resolved.batch_size * max(len(example.rows) for example in examples)
    kept = activation_bytes(base, [row for e in examples for row in e.rows], rows=rows)
    twice = kept > ACTIVATION_LIMIT_BYTES
    most = f"{'more' if twice else 'no more'} than {ACTIVATION_LIMIT_BYTES:,}"
    return Choice(twice, f"a step keeps about {kept:,} bytes, {most}")


def activation_bytes(base: Base, given: Sequence[TokenRow], *, rows: int) -> int:
    """About what the layers keep for the backward pass of one batch of the longest rows.

    A decoder behind an encoder computes where a task reads it, and attends to both.

    Args:
        base: The base; it has layers.
        given: Rows of the job, one at least.
        rows: Rows of the batch.

    Returns:
        Bytes, from above: a frozen layer keeps less than one that is trained.

    Source: Korthikanti et al. 2022, arXiv 2205.05198, equation 1, which counts two bytes a value.
    """
    heads = int(getattr(base.model.config, "num_attention_heads", 1))
    read = max(len(row.input_ids) for row in given)
    written = max(len(row.decoder_ids or ()) for row in given)
    stacks = stack_paths(base.trunk)
    values = len(stacks[0]) * read * (_PER_TOKEN * base.hidden_size + 5 * heads * read)
    for layers in stacks[1:]:
        per_token = (_PER_TOKEN + _PER_TOKEN_ACROSS) * base.hidden_size
        values += len(layers) * written * (per_token + 5 * heads * (written + read))
    return rows * values * next(base.trunk.parameters()).element_size() // 2
