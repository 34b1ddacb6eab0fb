"""Co-training: several jobs on one base in one process, as shares of the same forward.

Each job is a run of its own (``training.loop``): own dropout, loss, optimizer, schedule, length,
evaluations and end. Whenever the runs need gradients, those that may join are answered by one
forward and one backward. Jobs join and leave at step boundaries, and what becomes of one (an error,
a NaN, a wish to stop) is thrown into its own run and touches no other.

A job trains to the same bytes alone and in any company. That is not taken on trust: the machine's
products are probed once for a base, and whenever the company changes some steps are computed both
ways, compared bit by bit, and timed. Jobs that differ, or would be slower, go on one after another.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from peft_engine.bases.base import Base
from peft_engine.parts.joining import join
from peft_engine.router import Router
from peft_engine.runtime import return_freed_memory
from peft_engine.training.batches import StepBatches
from peft_engine.training.events import Interrupted, TrainingEvent, TrainingResult, Wish
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.joining import (
    Keepsake,
    kept_bytes,
    learn_together,
    least_exact_places,
    why_alone,
)
from peft_engine.training.loop import Assignment, Run, open_run
from peft_engine.training.parallel import Solo, World
from peft_engine.training.step import BatchLoss, Share

_log = logging.getLogger(__name__)

_TRIALS = 3
"""Steps that are computed both ways when a company changes. Both ways have the same batches and the
steps do not, so the median of the three ratios counts; the first one also pays for new memory."""

_WORTHWHILE_GAIN = 1.05
"""How many times as fast one forward must be: it keeps what all of its jobs need for their
backward at once, and three steps cannot tell a few hundredths from chance."""

_SEVERAL = "several devices train it"
"""Why such a job shares no forward."""

Ended = Callable[[TrainingResult | Exception], None]


@dataclass(frozen=True)
class Entrant:
    """A job that trains in company.

    Attributes:
        assigned: The job, and whom it asks and tells.
        ended: Given its result, or the error that ended it.
        world: The processes that train it. One that several train waits for the others at every
            step, so it is best in no company.
    """

    assigned: Assignment
    ended: Ended
    world: World = field(default_factory=Solo)


@dataclass
class Exactness:
    """What is known of a base's products; found out once, when a second job comes.

    Attributes:
        probed: Whether it is known.
        least_places: Places from which on a batch may join; None: none may.
    """

    probed: bool = False
    least_places: int | None = None

    def find(self, base: Base) -> int | None:
        """Probe the products, unless that has been done.

        Args:
            base: The base.

        Returns:
            ``least_places``.
        """
        if not self.probed:
            self.least_places, self.probed = least_exact_places(base), True
        return self.least_places


@dataclass(frozen=True)
class Limits:
    """How large a company may be.

    Attributes:
        jobs: Most jobs at a time.
        step_bytes: Most that one forward may keep for its backward, of all of its jobs together.
    """

    jobs: int
    step_bytes: int


@dataclass(eq=False)
class _Member:
    """A job in the company.

    Attributes:
        entrant: The job.
        run: Its run, stopped where it needs gradients.
        share: What it needs; None before the first step.
        alone: Why it cannot join, for people; None: it can.
        step_bytes: What its longest batch keeps for a backward; None: not measured yet.
        company: With how many others it shares a forward.
        told: What it was last told about that.
    """

    entrant: Entrant
    run: Run | None = None
    share: Share | None = None
    alone: str | None = None
    step_bytes: int | None = None
    company: int = 0
    told: str = ""

    def say(self, message: str) -> None:
        """Tell its owner, once."""
        if message != self.told:
            self.told = message
            self.entrant.assigned.emit(TrainingEvent("log", {"level": "info", "message": message}))


@dataclass
class _Pace:
    """How many times as fast one forward was, of each step that was computed both ways."""

    gains: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        return len(self.gains) >= _TRIALS

    @property
    def gain(self) -> float:
        return statistics.median(self.gains)

    @property
    def too_slow(self) -> bool:
        return self.known and self.gain < _WORTHWHILE_GAIN


def train_together(
    base: Base,
    *,
    arrivals: Callable[[], Iterable[Entrant]],
    limits: Limits,
    features: FeatureStore,
    router: Router,
    exactness: Exactness,
    checkpoint_seconds: float = 20.0,
    on_room: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] | None = None,
) -> None:
    """Train jobs until none is left and none arrives.

    Args:
        base: The frozen base, in the precision of all jobs.
        arrivals: Asked between steps for jobs that shall join; those given at once start at once.
        limits: How many may join, and how much memory one forward may take.
        features: Frozen features of earlier jobs on this base.
        router: The router of the base.
        exactness: What is known of the base.
        checkpoint_seconds: Least time between two checkpoints of a job.
        on_room: Told how many more jobs would do well here, whenever that changes.
        clock: Seconds by which the two ways to compute a step are compared; None: those of the
            processor on a CPU, where other work on the machine must not decide, else of the wall.
    """
    if clock is None:
        clock = time.process_time if base.device.type == "cpu" else time.perf_counter
    _Company(base, limits, features, router, exactness, checkpoint_seconds, on_room, clock).train(
        arrivals
    )


class _Company:
    """Jobs that train at the same time; one thread."""

    def __init__(
        self,
        base: Base,
        limits: Limits,
        features: FeatureStore,
        router: Router,
        exactness: Exactness,
        checkpoint_seconds: float,
        on_room: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self._base, self._limits = base, limits
        self._features, self._router = features, router
        self._exactness = exactness
        self._checkpoint_seconds = checkpoint_seconds
        self._on_room, self._clock = on_room, clock
        self._members: list[_Member] = []
        self._pace = _Pace()
        self._paced: tuple[int, ...] = ()
        self._room = -1

    def train(self, arrivals: Callable[[], Iterable[Entrant]]) -> None:
        """Take in, step, until nobody is left."""
        while True:
            for entrant in arrivals():
                self._enter(entrant)
            if not self._members:
                return_freed_memory()  # a process that waits needs none of it
                return
            self._step()
            self._tell_room()

    # ---- coming and going ---------------------------------------------------------------------

    def _enter(self, entrant: Entrant) -> None:
        member = _Member(entrant)
        own = entrant.assigned
        member.run = open_run(
            self._base,
            Assignment(
                own.spec,
                own.splits,
                lambda: self._control(member),
                lambda event: self._emit(member, event),
                own.checkpoints,
                own.parent,
            ),
            checkpoint_seconds=self._checkpoint_seconds,
            features=self._features,
            router=self._router,
            world=entrant.world,
        )
        self._members.append(member)
        self._go_on(member, None)
        if member.share is not None:
            joined = entrant.world.size > 1
            member.alone = _SEVERAL if joined else why_alone(member.share.stepper, self._base)

    def _go_on(self, member: _Member, answer: BatchLoss | Exception | None) -> None:
        """Let a run go on to the next batch that it needs, or to its end."""
        run = member.run
        if run is None or member not in self._members:
            return  # it left while another was evaluating
        try:
            if answer is None:
                member.share = next(run)
            elif isinstance(answer, BatchLoss):
                member.share = run.send(answer)
            else:
                member.share = run.throw(answer)
        except StopIteration as end:
            self._leave(member, end.value)
        except Exception as error:  # noqa: BLE001 the edge of a job: the others know nothing of it
            self._leave(member, error)

    def _leave(self, member: _Member, result: TrainingResult | Exception) -> None:
        self._members.remove(member)
        member.share = None
        member.run = None
        member.entrant.ended(result)

    def _control(self, asking: _Member) -> Wish | None:
        """The wish of a job that is at work; the others, which wait for it, are heard as well.

        An evaluation may take minutes: who cancels another job does not wait for its end.
        """
        for member in [other for other in self._members if other is not asking]:
            if member.share is None:
                continue  # it is itself waiting for the one that asks
            try:
                wish = member.entrant.assigned.control()
            except Exception as error:  # noqa: BLE001 belongs to that job, not to the one that asks
                self._go_on(member, error)
                continue
            if wish is not None:
                self._go_on(member, Interrupted(wish))
        return asking.entrant.assigned.control()

    def _emit(self, member: _Member, event: TrainingEvent) -> None:
        if event.kind == "progress":
            event = TrainingEvent(event.kind, {**event.data, "jobs_beside": member.company})
        member.entrant.assigned.emit(event)

    # ---- steps --------------------------------------------------------------------------------

    def _step(self) -> None:
        """Answer what every run needs, and let them go on."""
        waiting = [member for member in self._members if member.share is not None]
        for number, planned in enumerate(self._groups(waiting)):
            # whoever left while a run of an earlier group was evaluating needs no answer any more
            group = [member for member in planned if member.share is not None]
            for member in group:
                member.company = len(group) - 1
            answers = self._answer(group, tries=number == 0)
            for member, answer in zip(group, answers, strict=True):
                self._go_on(member, answer)

    def _groups(self, waiting: Sequence[_Member]) -> list[list[_Member]]:
        """Who shares a forward: as many as the memory of one forward allows, in their order."""
        joining = self._joining(waiting)
        groups: list[list[_Member]] = []
        left_bytes = 0
        for member in joining:
            own_bytes = self._bytes_of(member)
            if not groups or own_bytes > left_bytes:
                groups.append([])
                left_bytes = self._limits.step_bytes
            groups[-1].append(member)
            left_bytes -= own_bytes
        return groups + [[member] for member in waiting if member not in joining]

    def _joining(self, waiting: Sequence[_Member]) -> list[_Member]:
        able = [member for member in waiting if member.alone is None]
        if len(waiting) > 1:
            self._explain(waiting)
        if len(able) < 2:
            return []
        company = tuple(sorted(id(member) for member in able))
        if self._paced != company:
            self._paced, self._pace = company, _Pace()
        least = self._exactness.find(self._base)
        if least is None or self._pace.too_slow:
            return []
        return [member for member in able if _places(member) >= least]

    def _answer(self, group: Sequence[_Member], *, tries: bool) -> list[BatchLoss | Exception]:
        """Answer a group in the way that is known to be quicker; the first group finds that out."""
        shares = [member.share for member in group if member.share is not None]
        if not self._pace.known and len(shares) > 1 and tries:
            return self._answer_both_ways(shares)
        # The first group of this very step may have found one forward too slow, or not exact.
        is_shared = self._pace.known and self._reason_for_all() is None
        if not is_shared or len(shares) == 1:
            return [_answer_alone(share) for share in shares]
        before = [Keepsake.of(share.stepper) for share in shares]
        try:
            return list(learn_together(self._base, self._router, shares))
        except Exception:  # noqa: BLE001 whoever is to blame will meet it again by itself
            for share, kept in zip(shares, before, strict=True):
                kept.put_back(share.stepper)
            return [_answer_alone(share) for share in shares]

    def _answer_both_ways(self, shares: Sequence[Share]) -> list[BatchLoss | Exception]:
        """Prove that one forward gives the very bits of several, and see which way is quicker."""
        before = [Keepsake.of(share.stepper) for share in shares]
        started = self._clock()
        answers = [_answer_alone(share) for share in shares]
        apart_seconds = self._clock() - started
        if any(isinstance(answer, Exception) for answer in answers):
            return answers
        alone = [Keepsake.of(share.stepper) for share in shares]
        for share, kept in zip(shares, before, strict=True):
            kept.put_back(share.stepper)
        started = self._clock()
        try:
            joint: list[BatchLoss] | None = learn_together(self._base, self._router, shares)
            joint_seconds = self._clock() - started
        except Exception as error:  # noqa: BLE001 the answers are known already
            _log.warning("one forward of several jobs failed: %s", error)
            joint, joint_seconds = None, math.inf
        same = joint is None or (
            _alike(joint, answers)
            and all(
                kept.equals(Keepsake.of(share.stepper))
                for share, kept in zip(shares, alone, strict=True)
            )
        )
        for share, kept in zip(shares, alone, strict=True):
            kept.put_back(share.stepper)
        if not same:
            _log.warning("one forward of several jobs is not exact on %s", self._base.name)
            self._exactness.least_places = None
        self._pace.gains.append(apart_seconds / max(joint_seconds, 1e-9))
        if self._reason_for_all() is not None:
            return_freed_memory()  # jobs that take turns never need that much again
        return answers

    def _bytes_of(self, member: _Member) -> int:
        if member.step_bytes is None and member.share is not None:
            stepper = member.share.stepper
            batches = StepBatches(self._base, stepper.job, stepper.spec.training.seed, Solo())
            longest = Share(stepper, batches.longest())
            try:
                member.step_bytes = kept_bytes(longest, self._router, self._base)
            except Exception as error:  # noqa: BLE001 a batch that does not fit fails its own job
                _log.warning("the memory of a step was not measured: %s", error)
                member.step_bytes = self._limits.step_bytes
        return member.step_bytes or 0

    # ---- what people are told -----------------------------------------------------------------

    def _explain(self, waiting: Sequence[_Member]) -> None:
        others = len(waiting) - 1
        for member in waiting:
            reason = member.alone or self._reason_for_all()
            if reason is not None:
                member.say(f"takes turns with {_jobs(others)} on the same base: {reason}")
            elif self._pace.known and member.company:
                member.say(
                    f"trains in one forward with {_jobs(member.company)} on the same base, "
                    f"measured {self._pace.gain:.2f} x as fast as one after another"
                )

    def _reason_for_all(self) -> str | None:
        if self._exactness.probed and self._exactness.least_places is None:
            return "one forward would not give the very same bytes on this machine"
        if self._pace.too_slow:
            return (
                f"one forward was measured {self._pace.gain:.2f} x as fast, and takes the memory "
                f"of all at once; it is used from {_WORTHWHILE_GAIN} x on"
            )
        return None

    def _tell_room(self) -> None:
        room = self._find_room()
        if room != self._room:
            self._room = room
            self._on_room(room)

    def _find_room(self) -> int:
        """How many more jobs would be quicker here than later."""
        places = self._limits.jobs - len(self._members)
        if not self._members or places <= 0 or self._reason_for_all() is not None:
            return 0
        if any(member.alone is not None for member in self._members):
            return 0
        own = [self._bytes_of(member) for member in self._members]
        left_bytes = self._limits.step_bytes - sum(own)
        return max(0, min(places, left_bytes * len(own) // max(sum(own), 1)))


def _answer_alone(share: Share) -> BatchLoss | Exception:
    try:
        return share.alone()
    except Exception as error:  # noqa: BLE001 thrown into the job's own run
        return error


def _alike(joint: Sequence[BatchLoss], alone: Sequence[BatchLoss | Exception]) -> bool:
    """Whether losses are the same; that of a job about to fail may be no number."""
    return len(joint) == len(alone) and all(
        repr(one) == repr(other) for one, other in zip(joint, alone, strict=True)
    )


def _places(member: _Member) -> int:
    if member.share is None:
        return 0
    return join([member.share.batch]).places


def _jobs(count: int) -> str:
    return "another job" if count == 1 else f"{count} other jobs"
