"""The training loop, whole: from records to a delta that is the best step seen on validation.

It knows no database, no files and no clock but the one that paces checkpoints and the display;
what it computes is a function of the base, the job and the records alone.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.job import JobSpec
from peft_engine.delta import HEAD
from peft_engine.errors import ConfigError, DataError, TrainingError
from peft_engine.parts.batching import Batch, Example, collate, epoch_batches
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.tasks.protocol import Head, Record, Task
from peft_engine.tasks.table import TASKS
from peft_engine.training.checkpoint import Progress, pack_checkpoint, unpack_checkpoint
from peft_engine.training.events import (
    Checkpoints,
    Control,
    Emit,
    EventKind,
    Outcome,
    TrainingEvent,
    TrainingResult,
    Wish,
)
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import FeatureStore, fit_head, head_spec
from peft_engine.training.report import (
    BEFORE_CENTROID,
    BEFORE_UNTUNED,
    classify_before,
    compare,
)
from peft_engine.training.resolve import Resolved, resolve, resolve_max_length
from peft_engine.training.schedule import rate_factor
from peft_engine.training.trainable import (
    ParameterGroup,
    Trainable,
    create_trainable,
    parameter_groups,
)

_OUTCOMES: Mapping[Wish, Outcome] = {"cancel": "cancelled", "pause": "paused", "drain": "drained"}
_METRIC_EVERY_STEPS = 10


class _Interrupted(Exception):
    """A wish to stop was read in the middle of a phase."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.wish = wish


@dataclass(frozen=True)
class _Split:
    """One split, encoded."""

    records: Sequence[Record]
    examples: Sequence[Example]


def train(
    base: Base,
    spec: JobSpec,
    splits: Mapping[str, Sequence[Record]],
    *,
    control: Control,
    emit: Emit,
    checkpoints: Checkpoints,
    checkpoint_seconds: float = 20.0,
    features: FeatureStore | None = None,
    router: Router | None = None,
) -> TrainingResult:
    """Run one job, from the newest checkpoint if there is one.

    Args:
        base: The frozen base, loaded in the precision of the job.
        spec: What to train and how.
        splits: Canonical records of ``train``, ``validation`` and ``test``; the last two may be
            empty. The test split is only looked at once training is over.
        control: Asked at every step; a wish to pause or drain is obeyed after a checkpoint.
        emit: Told of phases, progress, metrics and resolved values.
        checkpoints: Where progress is kept.
        checkpoint_seconds: Least time between two checkpoints.
        features: Frozen features of earlier jobs on this base.
        router: The router of the base, when it has one already.

    Returns:
        The delta and what it is worth, or which wish ended the run.

    Raises:
        ConfigError: The job does not fit the base or the task.
        DataError: Records that cannot be learned from.
        TrainingError: The loss is not a number, or nothing would be trained.
    """
    run = _Run(
        base, spec, splits, control, emit, features or FeatureStore(), router or Router(base.trunk)
    )
    try:
        run.prepare()
        run.resume(checkpoints)
        run.optimize(checkpoints, checkpoint_seconds)
        return run.conclude()
    except _Interrupted as interrupted:
        if interrupted.wish != "cancel":
            run.save(checkpoints)
        return run.result(_OUTCOMES[interrupted.wish])


class _Run:
    """One run of the loop: the state that its phases share."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    resolved: Resolved
    progress: Progress

    def __init__(
        self,
        base: Base,
        spec: JobSpec,
        splits: Mapping[str, Sequence[Record]],
        control: Control,
        emit: Emit,
        features: FeatureStore,
        router: Router,
    ) -> None:
        self.base, self.spec, self.records = base, spec, splits
        self.control, self.tell, self.features, self.router = control, emit, features, router
        self.task = _find_task(spec, base)
        self.splits: dict[str, _Split] = {}
        self.groups: list[ParameterGroup] = []
        self.initial: dict[str, Tensor] | None = None
        self.best: dict[str, Tensor] | None = None
        self.metrics: dict[str, Any] = {}
        self.started = time.monotonic()
        self.started_tokens = 0
        self.started_step = 0

    # ---- before the first step ----------------------------------------------------------------

    def prepare(self) -> None:
        """Encode, resolve, and make parameters that leave the base as it is."""
        self.emit("phase", phase="tokenizing")
        labels = self.task.find_labels(self.records["train"])
        max_length = resolve_max_length(self.spec, self.base, self.task)
        for name in ("train", "validation", "test"):
            records = self.records.get(name, ())
            examples = self.task.encode(self.base, records, labels=labels, max_length=max_length)
            self.splits[name] = _Split(records, examples)
        self._report_cuts(max_length)
        self.check()
        train = self.splits["train"].examples
        if not train:
            raise DataError("the training split is empty", code="too_few_rows", param="dataset_id")
        self.resolved = resolve(
            self.spec, self.base, self.task, examples=train, max_length=max_length
        )
        head = None if labels is None else self._first_head(labels)
        self.trainable = create_trainable(
            self.base, self.spec.method, seed=self.spec.training.seed, head=head
        )
        self.groups = parameter_groups(
            self.trainable,
            learning_rate=self.resolved.learning_rate,
            head_learning_rate=self.resolved.head_learning_rate,
            weight_decay=self.resolved.weight_decay,
        )
        self.optimizer = self._make_optimizer()
        self.progress = Progress(run=self._digest())
        self.emit(
            "resolved",
            resolved=self.resolved.as_json(),
            trainable_parameters=self.trainable_parameters,
            head_parameters=self.head_parameters,
            base_parameters=self.base.parameters,
        )

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint of this very run."""
        found = checkpoints.latest()
        if found is not None:
            state = unpack_checkpoint(
                found[1],
                run=self.progress.run,
                trainable=self.trainable,
                optimizer=self.optimizer,
            )
            if state is None:
                self.log("warning", "a checkpoint of other settings or data was left aside")
            else:
                self.progress, self.best = state
                self.log("info", f"resumed at step {self.progress.step}")
        self.started_step, self.started_tokens = self.progress.step, self.progress.tokens
        if self.progress.step == 0:
            self.initial = self.trainable.copy()

    # ---- steps --------------------------------------------------------------------------------

    def optimize(self, checkpoints: Checkpoints, checkpoint_seconds: float) -> None:
        """Step until the end or until validation no longer improves."""
        self.emit("phase", phase="training")
        self.started = saved = time.monotonic()
        actor = self.trainable.actor(training=True)
        while True:
            self._evaluate_if_due()
            if self.progress.step >= self.resolved.total_steps or self.progress.stopped_early:
                return
            if time.monotonic() - saved >= checkpoint_seconds and self.progress.step > 0:
                self.save(checkpoints)
                saved = time.monotonic()
            self.check()
            self._step(actor)

    def _step(self, actor: Actor) -> None:
        """One optimizer step over one or more batches."""
        step = self.progress.step
        self.optimizer.zero_grad(set_to_none=True)
        total, count, tokens = 0.0, 0, 0
        for batch in self._batches_of_step(step):
            loss, targets = self._backward(actor, batch)
            total, count, tokens = total + loss, count + targets, tokens + batch.tokens
        if not math.isfinite(total) or count == 0:
            raise TrainingError(
                f"the loss at step {step + 1} is {total / max(count, 1)}; lower learning_rate "
                f"(now {self.resolved.learning_rate:g}) or look at the data",
                code="loss_not_finite",
                param="training.learning_rate",
            )
        self._apply(step, count)
        progress = self.progress
        progress.step, progress.tokens = step + 1, progress.tokens + tokens
        progress.loss_sum, progress.loss_count = (
            progress.loss_sum + total,
            progress.loss_count + count,
        )
        self._tell_progress(total / count)

    def _backward(self, actor: Actor, batch: Batch) -> tuple[float, int]:
        with self.router.use(Plan.build([actor] * batch.rows)):
            hidden = hidden_states(self.base, batch)
            loss = self.task.loss(
                self.base,
                self.trainable.head(),
                hidden,
                batch,
                label_smoothing=self.spec.training.label_smoothing,
            )
            loss.total.backward()  # type: ignore[no-untyped-call]
        return float(loss.total.detach()), loss.count

    def _apply(self, step: int, count: int) -> None:
        """Mean over targets, clip, set the rate, step."""
        leaves = list(self.trainable.tensors.values())
        if step == 0:
            self._check_gradients()
        torch._foreach_mul_([leaf.grad for leaf in leaves if leaf.grad is not None], 1 / count)
        if self.spec.training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, self.spec.training.max_grad_norm)
        factor = rate_factor(
            step,
            total_steps=self.resolved.total_steps,
            warmup_ratio=self.spec.training.warmup_ratio,
            schedule=self.spec.training.schedule,
        )
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = own.learning_rate * factor
        self.optimizer.step()

    def _batches_of_step(self, step: int) -> list[Batch]:
        epoch, place = divmod(step, self.resolved.steps_per_epoch)
        examples = self.splits["train"].examples
        order = epoch_batches(
            examples,
            batch_size=self.resolved.batch_size,
            seed=self.spec.training.seed,
            epoch=epoch,
        )
        accumulated = self.resolved.gradient_accumulation
        own = order[place * accumulated : (place + 1) * accumulated]
        return [
            collate([examples[i] for i in rows], pad_id=self.base.text.pad_id, device=self.base.device)
            for rows in own
        ]

    def _check_gradients(self) -> None:
        """A site that gets no gradient at the first step would be a silent no-op."""
        alive: dict[str, bool] = {}
        for name, leaf in self.trainable.tensors.items():
            site = name.partition(":")[0]
            moved = leaf.grad is not None and bool(leaf.grad.any())
            alive[site] = alive.get(site, False) or moved
        dead = [site for site, moved in alive.items() if not moved and site != HEAD]
        if dead:
            raise TrainingError(
                f"{len(dead)} sites get no gradient, the first is {dead[0]}", code="no_gradient"
            )

    # ---- validation ---------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Evaluate at the chosen steps, and the start once the first step has been taken."""
        progress, step = self.progress, self.progress.step
        if not self.splits["validation"].examples or step == 0:
            return
        if not progress.initial_metrics and self.initial is not None:
            now = self.trainable.copy()
            self.trainable.restore(self.initial)
            try:
                progress.initial_metrics = self._validate(0)
            finally:
                self.trainable.restore(now)
            self._judge(0, progress.initial_metrics, self.initial)
            self.initial = None
        due = step % self.resolved.eval_every_steps == 0 or step >= self.resolved.total_steps
        if due and progress.evaluated_step != step:
            metrics = self._validate(step)
            progress.evaluated_step = step
            progress.train_loss = progress.loss_sum / max(progress.loss_count, 1)
            progress.loss_sum, progress.loss_count = 0.0, 0
            self._judge(step, metrics, None)

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, float]:
        split = self.splits["validation"]
        found = self.task.evaluate(
            self._forward(self.trainable.actor(training=False)),
            self.trainable.head(),
            split.examples,
            split.records,
            batch_size=self._evaluation_rows,
            generate_rows=0,
        )
        for name, value in found.metrics.items():
            self.emit("metric", name=f"validation/{name}", step=step, value=value)
        return dict(found.metrics)

    def _judge(self, step: int, metrics: dict[str, float], values: dict[str, Tensor] | None) -> None:
        """Keep the best step; count evaluations without a gain."""
        progress, stopping = self.progress, self.spec.training.early_stopping
        min_delta = 0.0 if stopping is None else stopping.min_delta
        if progress.best_step < 0 or self._gain(metrics) > min_delta:
            progress.best_step, progress.best_metrics = step, metrics
            progress.evaluations_without_gain = 0
            self.best = values if values is not None else self.trainable.copy()
            return
        progress.evaluations_without_gain += 1
        if stopping is not None and progress.evaluations_without_gain >= stopping.patience:
            progress.stopped_early = step < self.resolved.total_steps

    def _gain(self, metrics: Mapping[str, float]) -> float:
        name = self.resolved.metric
        higher = name != "loss"
        gain = metrics[name] - self.progress.best_metrics[name]
        return gain if higher else -gain

    # ---- the end ------------------------------------------------------------------------------

    def conclude(self) -> TrainingResult:
        """Take the best step, and say on the test split whether it helped."""
        last = self.trainable.copy()
        if self.best is not None:
            self.trainable.restore(self.best)
        self.metrics = {
            "train": {"loss": self._train_loss()},
            "validation": {
                "initial": self.progress.initial_metrics,
                "best": self.progress.best_metrics,
                "best_step": self.progress.best_step if self.best is not None else None,
                "stopped_early": self.progress.stopped_early,
            },
        }
        try:
            if self.splits["test"].examples:
                self.emit("phase", phase="evaluating")
                self.metrics["test"] = self._test()
        except _Interrupted:
            self.trainable.restore(last)
            raise
        return self.result("succeeded")

    @torch.no_grad()
    def _test(self) -> dict[str, Any]:
        split, head = self.splits["test"], self.trainable.head()
        after = self.task.evaluate(
            self._forward(self.trainable.actor(training=False)),
            head,
            split.examples,
            split.records,
            batch_size=self._evaluation_rows,
            generate_rows=self.spec.training.eval_generate_rows,
        )
        if head is not None:
            first = self._first_head(head.labels)
            before, frozen = classify_before(
                self.base,
                self.features,
                train=self.splits["train"].examples,
                asked=split.examples,
                head=first,
                check=self.check,
            )
            report = compare(before, after, before_is=BEFORE_CENTROID)
            report["frozen_head"] = dict(frozen.metrics)
        else:
            before = self.task.evaluate(
                self._forward(None),
                None,
                split.examples,
                split.records,
                batch_size=self._evaluation_rows,
                generate_rows=self.spec.training.eval_generate_rows,
            )
            report = compare(before, after, before_is=BEFORE_UNTUNED)
        report["rows"] = len(split.examples)
        for name, value in after.metrics.items():
            self.emit("metric", name=f"test/{name}", step=self.progress.step, value=value)
        return report

    def result(self, outcome: Outcome) -> TrainingResult:
        """How the run ended."""
        done = outcome == "succeeded"
        delta = None
        if done:
            delta = self.trainable.freeze(
                self.base, task=self.task.name, max_length=self.resolved.max_length
            )
        has_parameters = hasattr(self, "trainable")
        return TrainingResult(
            outcome=outcome,
            delta=delta,
            metrics=self.metrics,
            resolved=self.resolved.as_json() if hasattr(self, "resolved") else {},
            trainable_parameters=self.trainable_parameters if has_parameters else 0,
            base_parameters=self.base.parameters,
        )

    # ---- small things -------------------------------------------------------------------------

    @property
    def trainable_parameters(self) -> int:
        """Values that are trained, the head included."""
        return sum(tensor.numel() for tensor in self.trainable.tensors.values())

    @property
    def head_parameters(self) -> int:
        """Values of the head alone."""
        own = self.trainable.tensors.items()
        return sum(tensor.numel() for name, tensor in own if name.startswith(f"{HEAD}:"))

    @property
    def _evaluation_rows(self) -> int:
        return max(32, self.resolved.batch_size)

    def check(self) -> None:
        """Obey a wish to stop."""
        wish = self.control()
        if wish is not None:
            raise _Interrupted(wish)

    def save(self, checkpoints: Checkpoints) -> None:
        """Keep a checkpoint, unless the start has not been evaluated yet: then a fresh start costs
        one step and is exact."""
        if not hasattr(self, "progress") or self.progress.step == 0 or self.initial is not None:
            return
        data = pack_checkpoint(self.progress, self.trainable, self.optimizer, self.best)
        checkpoints.save(self.progress.step, data)

    def emit(self, kind: EventKind, **data: Any) -> None:
        """Tell the outside."""
        self.tell(TrainingEvent(kind, data))

    def log(self, level: str, message: str) -> None:
        """Tell people."""
        self.emit("log", level=level, message=message)

    def _forward(self, actor: Actor | None) -> EvaluationForward:
        return EvaluationForward(self.base, self.router, actor, self.check)

    def _first_head(self, labels: tuple[str, ...]) -> Head:
        """The head that fits the frozen features best."""
        examples = self.splits["train"].examples
        found = self.features.get(self.base, examples, check=self.check)
        targets = torch.tensor([example.target for example in examples])
        return Head(head_spec(self.base), fit_head(found, targets, classes=len(labels)), labels)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {
                "params": [self.trainable.tensors[name] for name in group.names],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in self.groups
        ]
        if self.spec.training.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.resolved.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=self.resolved.learning_rate)

    def _train_loss(self) -> float | None:
        progress = self.progress
        if progress.loss_count:
            return progress.loss_sum / progress.loss_count
        return progress.train_loss

    def _tell_progress(self, loss: float) -> None:
        progress, total = self.progress, self.resolved.total_steps
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps = progress.step - self.started_step
        self.emit(
            "progress",
            step=progress.step,
            total_steps=total,
            epoch=progress.step / self.resolved.steps_per_epoch,
            percent=100 * progress.step / total,
            loss=loss,
            tokens=progress.tokens,
            tokens_per_second=(progress.tokens - self.started_tokens) / seconds,
            eta_seconds=seconds / steps * (total - progress.step),
        )
        if progress.step % _METRIC_EVERY_STEPS == 0 or progress.step == 1:
            self.emit("metric", name="train/loss", step=progress.step, value=loss)

    def _report_cuts(self, max_length: int) -> None:
        for name, split in self.splits.items():
            cut = sum(example.cut_tokens > 0 for example in split.examples)
            if cut:
                self.log("warning", f"{cut} rows of {name} were cut to {max_length} tokens")

    def _digest(self) -> str:
        """What a checkpoint must agree with: the same base, settings and tokens."""
        spec = self.spec.model_dump(mode="json", exclude={"metadata", "adapter_name"})
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
        digest.update(json.dumps(self.resolved.as_json(), sort_keys=True).encode())
        digest.update(f"{self.base.fingerprint}{self.base.template_digest}".encode())
        for split in self.splits.values():
            for example in split.examples:
                digest.update(f"{list(example.input_ids)}{example.target}".encode())
        return digest.hexdigest()


def _find_task(spec: JobSpec, base: Base) -> Task:
    if spec.task is None:
        raise ConfigError("the job names no task", code="task_missing", param="task")
    task = TASKS[spec.task]
    if base.architecture not in task.architectures:
        offered = ", ".join(sorted(task.architectures))
        raise ConfigError(
            f"{task.name} needs a base of the family {offered}; {base.name} is {base.architecture}",
            code="task_not_supported",
            param="base_model",
        )
    return task
