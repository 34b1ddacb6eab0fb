"""The training loop, whole: from records to the delta of the step that validation chooses.

It knows no database, no files and no clock but the one that paces checkpoints and the display;
what it computes is a function of the base, the job and the records alone. A run stops whenever it
needs the gradients of a batch: ``training.alone`` computes them for one run, ``training.together``
for several at once.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.errors import TrainingError
from peft_engine.parts.statistics import Evaluation
from peft_engine.router import Router
from peft_engine.tasks.protocol import Record
from peft_engine.training.batches import StepBatches
from peft_engine.training.checkpoint import Progress, pack_state, unpack_checkpoint
from peft_engine.training.draws import MetricDraws, draw_metrics
from peft_engine.training.evaluations import deciding_rows
from peft_engine.training.events import (
    Checkpoints,
    Control,
    Emit,
    EventKind,
    Interrupted,
    Outcome,
    TrainingEvent,
    TrainingResult,
    Wish,
)
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.pace import Pace, count_closing_evaluations
from peft_engine.training.parallel import World, by_lead, decide, gather, together
from peft_engine.training.prepare import Prepared, prepare
from peft_engine.training.report import report_split
from peft_engine.training.selection import explain_kept, note_evaluation, top_of
from peft_engine.training.step import BatchLoss, Share, Stepper
from peft_engine.training.trainable import dropout_seed
from peft_engine.training.validating import validate

_OUTCOMES: Mapping[Wish, Outcome] = {"cancel": "cancelled", "pause": "paused", "drain": "drained"}
_METRIC_EVERY_STEPS = 10

Run = Generator[Share, BatchLoss, TrainingResult]
"""A run between two batches. Whoever drives it answers each share with its loss, the gradients in
place, or throws what became of it; the run's own errors come out of it."""


@dataclass(frozen=True)
class Assignment:
    """One job, and whom its run asks and tells.

    Attributes:
        spec: What to train and how.
        splits: Canonical records of ``train``, ``validation`` and ``test``; the last two may be
            empty. The test split is only looked at once training is over.
        control: Asked at every step; a wish to pause or drain is obeyed after a checkpoint.
        emit: Told of phases, progress, metrics and resolved values.
        checkpoints: Where progress is kept.
        parent: The delta to continue from, if any; see ``training.lineage``.
    """

    spec: JobSpec
    splits: Mapping[str, Sequence[Record]]
    control: Control
    emit: Emit
    checkpoints: Checkpoints
    parent: Delta | None = None


def open_run(
    base: Base,
    assigned: Assignment,
    *,
    checkpoint_seconds: float,
    features: FeatureStore,
    router: Router,
    world: World,
) -> Run:
    """Run one job, from the newest checkpoint if there is one.

    Args:
        base: The frozen base, loaded in the precision of the job.
        assigned: The job.
        checkpoint_seconds: Least time between two checkpoints.
        features: Frozen features of earlier jobs on this base.
        router: The router of the base.
        world: The processes that train this job together, each with the same base, job and
            records. Only the lead asks, tells and keeps.

    Yields:
        What the next step needs gradients of; nothing has been done before the first is asked for.

    Returns:
        The delta (the lead's alone) and what it is worth, or which wish ended the run.

    Raises:
        ConfigError: The job does not fit the base, the task or the parent.
        DataError: Records that cannot be learned from.
        TrainingError: The loss is not a number, nothing would be trained, or another process of
            the job is gone.
    """  # noqa: DOC502  raised below
    emit = assigned.emit if world.rank == 0 else lambda _: None
    run = _Run(base, assigned.spec, assigned.control, emit, features, router, world)
    checkpoints = assigned.checkpoints
    try:
        run.prepare(assigned.splits, assigned.parent)
        run.resume(checkpoints)
        yield from run.optimize(checkpoints, checkpoint_seconds)
        return run.conclude()
    except Interrupted as interrupted:
        if interrupted.wish != "cancel":
            run.save(checkpoints)
        return run.result(_OUTCOMES[interrupted.wish], metrics={})


class _Run:
    """One run of the loop: the state that its phases share."""

    def __init__(
        self,
        base: Base,
        spec: JobSpec,
        control: Control,
        emit: Emit,
        features: FeatureStore,
        router: Router,
        world: World,
    ) -> None:
        self.base, self.spec, self.control, self.tell = base, spec, control, emit
        self.features, self.router = features, router
        self.world = world
        self.job: Prepared | None = None
        self.progress = Progress(run="")
        self.initial: dict[str, Tensor] | None = None
        self.best: dict[str, Tensor] | None = None
        self.test_draws: Mapping[str, MetricDraws] = {}
        self.validation_draws: Mapping[str, MetricDraws] = {}
        self.pace = Pace(step=0, tokens=0)

    # ---- before the first step ----------------------------------------------------------------

    def prepare(self, splits: Mapping[str, Sequence[Record]], parent: Delta | None) -> None:
        """Encode, resolve, and make parameters that leave base or parent as they are."""
        self.emit("phase", phase="tokenizing")
        job = together(
            self.world,
            lambda: prepare(
                self.base,
                self.spec,
                splits,
                router=self.router,
                features=self.features,
                check=self.check,
                emit=self.tell,
                parent=parent,
            ),
        )
        # A resumed run must be of as many processes: each draws dropout for its own rows.
        size = self.world.size
        run = job.digest if size == 1 else f"{job.digest} on {size}"
        self.job, self.progress = job, Progress(run=run)
        if self.world.rank > 0:
            job.trainable.dropout.manual_seed(
                dropout_seed(self.spec.training.seed, self.world.rank)
            )
        self.world.follow([*job.trainable.tensors.values(), *job.trainable.fixed.values()])
        self.emit(
            "resolved",
            resolved=job.resolved.as_json(),
            trainable_parameters=job.trainable.parameters,
            head_parameters=job.trainable.head_parameters,
            base_parameters=self.base.parameters,
        )

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint of this very run."""
        job = self.ready
        kept, delta = self._latest(checkpoints)
        if kept:
            state = unpack_checkpoint(
                kept,
                delta,
                run=self.progress.run,
                trainable=job.trainable,
                optimizer=job.optimizer,
                rank=self.world.rank,
            )
            if state is None:
                self.log("warning", "a checkpoint of other settings or data was left aside")
            else:
                self.progress, self.best = state
                self.log("info", f"resumed at step {self.progress.step}")
        if self.progress.step > 0:
            return  # its owner was told before
        for line in job.resolved.explain():
            self.log("info", line)
        if job.splits["validation"].examples:
            self.initial = job.trainable.copy()

    def _latest(self, checkpoints: Checkpoints) -> tuple[bytes, Delta | None]:
        """The lead's newest checkpoint, told to the others; an empty state when there is none."""
        found = checkpoints.latest() if self.world.rank == 0 else None
        _, state, delta = (0, b"", None) if found is None else found
        if self.world.size == 1:
            return state, delta
        state = self.world.tell(state)
        file = self.world.tell(b"" if delta is None else save_delta(delta))
        return state, load_delta(file) if file else None

    # ---- steps --------------------------------------------------------------------------------

    def optimize(
        self, checkpoints: Checkpoints, checkpoint_seconds: float
    ) -> Generator[Share, BatchLoss, None]:
        """Step until the end or until validation no longer improves.

        Yields:
            What each step needs gradients of.
        """
        self.emit("phase", phase="training")
        saved = time.monotonic()
        self.pace = Pace(step=self.progress.step, tokens=self.progress.tokens)
        stepper = Stepper(self.base, self.router, self.ready, self.spec, self.world)
        stepper.proven = self.progress.proven
        batches = StepBatches(self.base, self.ready, self.spec.training.seed, self.world)
        while True:
            self._evaluate_if_due()
            if self.progress.step >= self.ready.resolved.total_steps or self.progress.stopped_early:
                return
            if self._save_due(saved, checkpoint_seconds):
                self.save(checkpoints)
                saved = time.monotonic()
            self._obey()
            yield from self._step(stepper, batches)

    def _save_due(self, saved: float, checkpoint_seconds: float) -> bool:
        """Whether the lead's clock asks for a checkpoint."""
        if self.progress.step == 0:
            return False
        due = decide(self.world, lambda: {"due": time.monotonic() - saved >= checkpoint_seconds})
        return bool(due["due"])

    def _obey(self) -> None:
        """Obey a wish to stop, all processes at once.

        Raises:
            Interrupted: There is one.
        """  # noqa: DOC502  raised below
        together(self.world, self.check)

    def _step(self, stepper: Stepper, batches: StepBatches) -> Generator[Share, BatchLoss, None]:
        progress = self.progress
        seen = yield from stepper.take(progress.step, batches.of_step(progress.step), self._obey)
        progress.step, progress.tokens = progress.step + 1, progress.tokens + seen.tokens
        progress.proven = stepper.proven
        progress.loss_sum += seen.loss
        progress.loss_count += seen.count
        self._tell_progress(seen.loss / seen.count)

    # ---- validation ---------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Evaluate at the chosen steps, and the start once the first step has been taken.

        The start is judged late on purpose: a job's first step need not wait for it.
        """
        progress, job = self.progress, self.ready
        if not job.splits["validation"].examples or progress.step == 0:
            return
        if self.initial is not None:
            now = job.trainable.copy()
            job.trainable.restore(self.initial)
            try:
                with self.pace.evaluation():
                    found = by_lead(self.world, lambda: self._validate(0))
            finally:
                job.trainable.restore(now)
            progress.initial_metrics = found["metrics"]
            self._judge(0, found, self.initial)
            self.initial = None
        at_end = progress.step >= job.resolved.total_steps
        due = at_end or progress.step % job.resolved.eval_every_steps == 0
        if due and progress.evaluated_step != progress.step:
            with self.pace.evaluation():
                found = by_lead(self.world, lambda: self._validate(progress.step))
            progress.evaluated_step = progress.step
            progress.train_loss = progress.loss_sum / max(progress.loss_count, 1)
            progress.loss_sum, progress.loss_count = 0.0, 0.0
            self._judge(progress.step, found, None)

    def _validate(self, step: int) -> dict[str, Any]:
        found = validate(self.base, self.router, self.ready, self.check)
        for name, value in found["metrics"].items():
            self.emit("metric", name=f"validation/{name}", step=step, value=value)
        return found

    def _judge(self, step: int, found: Mapping[str, Any], values: dict[str, Tensor] | None) -> None:
        resolved, stopping = self.ready.resolved, self.spec.training.early_stopping
        kept = note_evaluation(
            self.progress,
            step,
            found["metrics"],
            found["draws"],
            metric=resolved.metric,
            min_delta=0.0 if stopping is None else stopping.min_delta,
            patience=resolved.patience,
            total_steps=resolved.total_steps,
            keep=resolved.keep,
        )
        if kept:
            self.best = values if values is not None else self.ready.trainable.copy()

    # ---- the end ------------------------------------------------------------------------------

    def conclude(self) -> TrainingResult:
        """Take the step that is kept, and say on the test split whether it helped.

        Raises:
            Interrupted: A wish to stop came during the evaluation.
        """
        job, progress = self.ready, self.progress
        last = job.trainable.copy()
        if self.best is not None:
            job.trainable.restore(self.best)
        metrics: dict[str, Any] = {"train": {"loss": self._train_loss()}}
        if progress.best_metrics or job.splits["test"].examples:
            self.emit("phase", phase="evaluating")
        try:
            if progress.best_metrics:
                rows = deciding_rows(
                    job.task,
                    job.resolved.metric,
                    rows=len(job.splits["validation"].records),
                    answered=job.resolved.validation_generate_rows,
                )
                why = explain_kept(progress, metric=job.resolved.metric, rows=rows)
                if why is not None:
                    self.log("info", why)
                metrics["validation"] = {
                    "metric": job.resolved.metric,
                    "initial": progress.initial_metrics,
                    "best": progress.best_metrics,
                    "best_step": progress.best_step,
                    **top_of(progress),
                    "stopped_early": progress.stopped_early,
                    **self._report("validation"),
                }
            if job.splits["test"].examples:
                metrics["test"] = self._report("test")
        except Interrupted:
            job.trainable.restore(last)  # what a checkpoint must hold
            raise
        for name, value in metrics.get("test", {}).get("after", {}).items():
            self.emit("metric", name=f"test/{name}", step=progress.step, value=value)
        if progress.best_metrics:
            self._warn_of_no_gain()
        return self.result("succeeded", metrics=metrics)

    def _report(self, split: Literal["validation", "test"]) -> dict[str, Any]:
        return by_lead(
            self.world,
            lambda: report_split(
                self.base,
                self.router,
                self.ready,
                self.spec,
                name=split,
                features=self.features,
                check=self.check,
                on_evaluated=self._keep_draws,
            ),
        )

    def _keep_draws(self, split: str, evaluated: Evaluation) -> None:
        """Keep what is compared later: the test, or validation where there shall be no test."""
        if split == "test":
            self.test_draws = draw_metrics(evaluated)
        elif not self.spec.evaluate_test:
            metric = self.ready.resolved.metric
            own = {name: rows for name, rows in evaluated.rows.items() if name == metric}
            self.validation_draws = draw_metrics(Evaluation(evaluated.metrics, own))

    def _warn_of_no_gain(self) -> None:
        """Say so when the start was the best step: what is published changes nothing."""
        if self.progress.best_step == 0:
            resolved = self.ready.resolved
            self.log(
                "warning",
                f"no step was better than the start on validation ({resolved.metric}): "
                f"the adapter adds nothing to {self.ready.start_is}; try more epochs or rows, "
                f"another learning_rate (now {resolved.learning_rate:g}) or another method",
            )

    def result(self, outcome: Outcome, *, metrics: Mapping[str, Any]) -> TrainingResult:
        """How the run ended."""
        is_whole = outcome == "succeeded" and self.world.rank == 0
        return TrainingResult(
            outcome=outcome,
            delta=self._freeze() if is_whole else None,
            metrics=metrics,
            test_draws=self.test_draws,
            validation_draws=self.validation_draws,
            resolved={} if self.job is None else self.job.resolved.as_json(),
            trainable_parameters=0 if self.job is None else self.job.trainable.parameters,
            base_parameters=self.base.parameters,
        )

    def _freeze(self) -> Delta:
        """The delta of the values as they are now."""
        job = self.ready
        return job.trainable.freeze(
            self.base, task=job.task.name, max_length=job.resolved.max_length
        )

    # ---- small things -------------------------------------------------------------------------

    @property
    def ready(self) -> Prepared:
        """The prepared job.

        Raises:
            TrainingError: There is none yet.
        """
        if self.job is None:
            raise TrainingError("the run has not been prepared", code="not_prepared")
        return self.job

    def check(self) -> None:
        """Obey a wish to stop, of which only the lead knows.

        Raises:
            Interrupted: There is one.
        """
        wish = self.control() if self.world.rank == 0 else None
        if wish is not None:
            raise Interrupted(wish)

    def save(self, checkpoints: Checkpoints) -> None:
        """Keep a checkpoint.

        Before the start has been judged there is nothing to keep: a fresh start costs one step
        and is exact.
        """
        if self.job is None or self.progress.step == 0 or self.initial is not None:
            return
        drawn = gather(self.world, self.job.trainable.dropout.get_state())
        if self.world.rank == 0:
            delta = self._freeze()
            state = pack_state(self.progress, delta, self.job.optimizer, self.best, dropout=drawn)
            checkpoints.save(self.progress.step, state, delta)

    def emit(self, kind: EventKind, **data: Any) -> None:
        """Tell the outside."""
        self.tell(TrainingEvent(kind, data))

    def log(self, level: str, message: str) -> None:
        """Tell people."""
        self.emit("log", level=level, message=message)

    def _train_loss(self) -> float | None:
        progress = self.progress
        if progress.loss_count:
            return progress.loss_sum / progress.loss_count
        return progress.train_loss

    def _tell_progress(self, loss: float) -> None:
        progress, job = self.progress, self.ready
        resolved = job.resolved
        self.emit(
            "progress",
            step=progress.step,
            total_steps=resolved.total_steps,
            epoch=progress.step / resolved.steps_per_epoch,
            percent=100 * progress.step / resolved.total_steps,
            loss=loss,
            tokens=progress.tokens,
            **self.pace.tell(
                resolved,
                step=progress.step,
                tokens=progress.tokens,
                evaluates=bool(job.splits["validation"].examples),
                closing=count_closing_evaluations(self.base, job, self.spec),
            ),
        )
        if progress.step % _METRIC_EVERY_STEPS == 0 or progress.step == 1:
            self.emit("metric", name="train/loss", step=progress.step, value=loss)
