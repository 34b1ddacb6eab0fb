"""Continuing from a delta: what a job takes over from its parent, and when it is refused.

The values, the choices of masks, the head with its labels and the length are the parent's, so that
the start of the job evaluates to exactly what the parent's end did. Optimizer and schedule begin
anew.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.configs.lineage import inherit_methods
from peft_engine.configs.manifest import AnyHeadSpec
from peft_engine.delta import Delta, check_delta
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example
from peft_engine.router import Router
from peft_engine.tasks.protocol import GrowingTask, Head, HeadTask, Task
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import compute_features
from peft_engine.training.trainable import Trainable, adopt_trainable


def inherit_spec(spec: JobSpec, base: Base, parent: Delta) -> JobSpec:
    """A job with everything that its parent decides.

    Args:
        spec: The job as asked.
        base: The base, loaded.
        parent: The delta to go on from.

    Returns:
        The job with the parent's methods, and its length unless another was asked for.

    Raises:
        ConfigError: Another task or method than the parent's.
        DeltaError: The parent belongs to another base or template, or is damaged.
    """  # noqa: DOC502  raised below
    manifest = parent.manifest
    check_delta(
        parent, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    if spec.task != manifest.task:
        raise ConfigError(
            f"the job is for {spec.task} and its parent for {manifest.task}",
            code="task_mismatch",
            param="task",
        )
    training = spec.training
    if training.max_length == "auto":
        # Rows that were cut for the parent must be cut alike, or its metrics would not come again.
        training = training.model_copy(update={"max_length": manifest.max_length})
    return inherit_methods(spec, manifest.methods).model_copy(update={"training": training})


def merge_labels(
    task: Task, parent: Delta, found: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """The parent's labels in its order, then those that only the new rows have.

    Args:
        task: The task that the form of the new rows asks for.
        parent: The delta to go on from.
        found: Labels of the new training rows.

    Returns:
        All labels; None for a task without classes.

    Raises:
        ConfigError: The new rows ask for another kind of head, such as one for several labels.
    """
    spec = parent.manifest.head
    own = None if spec is None else spec.kind
    wanted = task.kind if isinstance(task, HeadTask) else None
    if own != wanted:
        raise ConfigError(
            f"the new rows ask for a head of the kind {wanted!r} and the parent has {own!r}; "
            "give the rows the form that the parent was trained on",
            code="parent_mismatch",
            param="dataset_id",
        )
    if found is None:
        return None
    known = parent.manifest.labels or ()
    return known + tuple(label for label in found if label not in known)


def continue_from(
    base: Base,
    router: Router,
    parent: Delta,
    task: Task,
    examples: Sequence[Example],
    *,
    labels: tuple[str, ...] | None,
    seed: int,
    check: Callable[[], None],
) -> Trainable:
    """The parent's values as parameters, its head grown where the rows need it.

    Args:
        base: The base.
        router: Its router.
        parent: The delta to go on from, checked against the base.
        task: The task.
        examples: New training examples, their targets by ``labels``.
        labels: From ``merge_labels``.
        seed: Fixes dropout.
        check: Called before each forward and within a fit; may raise to interrupt.

    Returns:
        The parameters.
    """
    spec, head = parent.manifest.head, None
    if spec is not None:
        head = Head(spec, parent.head, parent.manifest.labels or ())
    if head is not None and isinstance(task, GrowingTask):
        actor = adopt_trainable(base, parent, seed=seed, head=None).actor(training=False)
        tuned = _TunedBase(base, EvaluationForward(base, router, actor, check), check)
        head = task.extend_head(tuned, head, examples, labels=labels)
    return adopt_trainable(base, parent, seed=seed, head=head)


class _TunedBase:
    """Features of the base with a delta, as ``FrozenBase`` gives those of the plain base."""

    def __init__(self, base: Base, forward: EvaluationForward, check: Callable[[], None]) -> None:
        self.base, self.check = base, check
        self._forward = forward

    def features(self, task: HeadTask, spec: AnyHeadSpec, examples: Sequence[Example]) -> Tensor:
        return compute_features(self.base, self._forward.hidden, task, spec, examples)
