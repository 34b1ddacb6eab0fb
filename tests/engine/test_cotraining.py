"""Jobs in company: the bytes that each has alone, whoever comes, goes, fails or is stopped.

On the CPU, wherever else there is a device: on CUDA products of a different height are added up in
another order, so that jobs take turns there, which one test asks for on any device.
"""

import gc
import itertools
import platform
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base, load_described
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import TrainingError
from peft_engine.parts.batching import Batch
from peft_engine.router import Router
from peft_engine.runtime import return_freed_memory
from peft_engine.tasks.protocol import LossSum
from peft_engine.training import (
    Assignment,
    Entrant,
    Exactness,
    FeatureStore,
    Limits,
    TrainingEvent,
    TrainingResult,
    train_together,
)
from peft_engine.training import together as together_module
from peft_engine.training.events import Wish
from peft_engine.training.joining import kept_bytes, learn_together, least_exact_places
from peft_engine.training.step import BatchLoss, Share, Stepper
from tests.engine.method_table import METHOD_CASES
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, Splits, job, run

ROOMY = Limits(jobs=32, step_bytes=1 << 30)
SHORT: Splits = {"train": CLASSIFICATION["train"][:24], "validation": CLASSIFICATION["validation"]}


def on_cpu(base: Base) -> Base:
    return base if base.device.type == "cpu" else load_described(base.info, device="cpu")


@pytest.fixture(scope="module")
def bert(bert: Base) -> Base:
    return on_cpu(bert)


@pytest.fixture(scope="module")
def llama(llama: Base) -> Base:
    return on_cpu(llama)


@pytest.fixture(scope="module")
def gpt2(gpt2: Base) -> Base:
    return on_cpu(gpt2)


def clock(gain: float) -> Callable[[], float]:
    """A clock by which one forward is so many times as fast as several."""
    pauses = itertools.cycle([0.0, gain, 0.0, 1.0])
    return itertools.accumulate(pauses).__next__


@dataclass
class Person:
    """Who started a job: what it was told, what it wants, and what became of the job."""

    spec: JobSpec
    splits: Splits
    shelf: Shelf = field(default_factory=Shelf)
    wish: Callable[["Person"], Wish | None] = lambda _: None
    events: list[TrainingEvent] = field(default_factory=list)
    ends: list[TrainingResult | Exception] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(event.kind == "progress" for event in self.events)

    @property
    def most_beside(self) -> int:
        return max(e.data["jobs_beside"] for e in self.events if e.kind == "progress")

    @property
    def log(self) -> str:
        return "\n".join(str(e.data["message"]) for e in self.events if e.kind == "log")

    @property
    def digest(self) -> str:
        (end,) = self.ends
        assert isinstance(end, TrainingResult), end
        assert end.delta is not None
        return end.delta.digest

    def enter(self) -> Entrant:
        assigned = Assignment(
            self.spec, self.splits, lambda: self.wish(self), self.events.append, self.shelf
        )
        return Entrant(assigned, self.ends.append)


def train_all(
    base: Base,
    people: Sequence[Person],
    *,
    late: Mapping[int, Person] | None = None,
    limits: Limits = ROOMY,
    exactness: Exactness | None = None,
    gain: float = 2.0,
    checkpoint_seconds: float = 1e9,
    rooms: list[int] | None = None,
) -> None:
    """Train people's jobs together; ``late`` come before the step of their number."""
    polls = itertools.count()

    def arrivals() -> Iterable[Entrant]:
        poll = next(polls)
        found = list(people) if poll == 0 else []
        return [p.enter() for p in (*found, *([late[poll]] if poll in (late or {}) else []))]  # type: ignore[index]

    train_together(
        base,
        arrivals=arrivals,
        limits=limits,
        features=FeatureStore(),
        router=Router(base.trunk),
        exactness=exactness or Exactness(),
        checkpoint_seconds=checkpoint_seconds,
        on_room=[].append if rooms is None else rooms.append,
        clock=clock(gain),
    )


def solo_digest(base: Base, person: Person) -> str:
    delta = run(base, person.spec, person.splits).delta
    assert delta is not None
    return delta.digest


def three() -> list[Person]:
    """Jobs of three lengths, rates and batches, with dropout."""
    return [
        Person(job(epochs=2, seed=1), CLASSIFICATION),
        Person(job(epochs=1, seed=2, batch_size=4, gradient_accumulation=2), SHORT),
        Person(job(epochs=3, seed=3, batch_size=6, learning_rate=0.003), SHORT),
    ]


# ---- the same bytes ---------------------------------------------------------------------------


def test_products_of_this_machine_are_exact(any_base: Base) -> None:
    """Where this fails jobs take turns: everything still works, and every job says why."""
    assert least_exact_places(any_base) is not None


def test_every_method_has_the_bytes_that_it_has_alone(any_base: Base) -> None:
    task = "text-classification" if any_base.architecture == "encoder" else "text-generation"
    splits = {"train": (SHORT if task == "text-classification" else GENERATION)["train"]}
    people = []
    for seed, configs in enumerate(METHOD_CASES.values()):
        method = [config.model_dump() for config in configs]
        people.append(Person(job(task, method=method, max_steps=5, seed=seed), splits))
    train_all(any_base, people)
    for name, person in zip(METHOD_CASES, people, strict=True):
        assert person.digest == solo_digest(any_base, person), name
        acts_alone = any(config.type in ("prefix", "head-only") for config in METHOD_CASES[name])
        assert (person.most_beside == 0) == (acts_alone or "last layer" in name), name


def test_every_task_has_the_bytes_that_it_has_alone(bert: Base) -> None:
    people = [
        Person(job(task, max_steps=5, max_length=48, seed=seed), splits)
        for seed, (task, splits) in enumerate(SETS.values())
    ]
    train_all(bert, people)
    for name, person in zip(SETS, people, strict=True):
        assert person.digest == solo_digest(bert, person), name
        assert person.most_beside > 0, name


def test_packed_and_padded_jobs_join(llama: Base) -> None:
    people = [
        Person(job("text-generation", epochs=2, seed=1, packing=True), GENERATION),
        Person(job("text-generation", epochs=1, seed=2, packing=False), GENERATION),
        Person(job("text-classification", epochs=1, seed=3), SHORT),
    ]
    train_all(llama, people)
    for person in people:
        assert person.digest == solo_digest(llama, person)
        assert person.most_beside == 2


def test_jobs_come_and_go_between_steps(bert: Base) -> None:
    first, second, third = three()
    train_all(bert, [first], late={2: second, 7: third})
    for person in (first, second, third):
        assert person.digest == solo_digest(bert, person)
    assert [e.data["jobs_beside"] for e in first.events if e.kind == "progress"][:2] == [0, 0]
    assert max(first.most_beside, third.most_beside) >= 1
    assert "trains in one forward with another job" in first.log


def test_gradients_are_those_of_each_job_alone(bert: Base) -> None:
    """The same as the bytes, said of the gradients themselves, on the first batches."""
    found: list[tuple[Sequence[Share], list[list[torch.Tensor]]]] = []

    def look(base: Base, router: Router, shares: Sequence[Share]) -> list[BatchLoss]:
        losses = learn_together(base, router, shares)
        found.append((shares, [_gradients(share) for share in shares]))
        for share, loss in zip(shares, losses, strict=True):
            together = _gradients(share)
            share.stepper.job.optimizer.zero_grad()
            assert share.alone() == loss
            for one, other in zip(together, _gradients(share), strict=True):
                assert torch.allclose(one, other, rtol=0, atol=1e-6)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together_module, "learn_together", look)
        people = [Person(job(method="lora", max_steps=5, seed=s), SHORT) for s in range(3)]
        train_all(bert, people)
    assert len(found) == 5


def _gradients(share: Share) -> list[torch.Tensor]:
    leaves = share.stepper.job.trainable.tensors.values()
    return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


# ---- what becomes of one ----------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_its_own_job(bert: Base) -> None:
    well, ill = three(), Person(job(epochs=20, seed=7), SHORT)
    alone = [solo_digest(bert, person) for person in well]
    own = Stepper.loss

    def diverge(stepper: Stepper, hidden: torch.Tensor, batch: Batch) -> LossSum:
        """From its fifth step on, gradients into the common forward included."""
        loss = own(stepper, hidden, batch)
        ill_now = stepper.spec == ill.spec and ill.steps >= 4
        return replace(loss, total=loss.total * float("nan")) if ill_now else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "loss", diverge)
        train_all(bert, [*well, ill])
    assert [person.digest for person in well] == alone
    (error,) = ill.ends
    assert isinstance(error, TrainingError)
    assert (error.code, ill.steps) == ("loss_not_finite", 4)
    assert ill.most_beside == 3


@pytest.mark.parametrize("wish", ["cancel", "pause", "drain"])
def test_one_job_is_stopped_and_the_others_go_on(wish: Wish, bert: Base) -> None:
    first, stopped, third = three()
    stopped.spec = job(epochs=4, seed=5)
    stopped.wish = lambda person: wish if person.steps >= 5 else None
    train_all(bert, [first, stopped, third])
    assert first.digest == solo_digest(bert, first)
    assert third.digest == solo_digest(bert, third)
    (end,) = stopped.ends
    assert isinstance(end, TrainingResult)
    assert end.outcome == {"cancel": "cancelled", "pause": "paused", "drain": "drained"}[wish]
    if wish == "cancel":
        assert stopped.shelf.kept == []
        return
    again = Person(stopped.spec, stopped.splits, shelf=stopped.shelf)
    train_all(bert, [again, Person(job(seed=9, epochs=1), SHORT)])
    assert "resumed at step 5" in again.log
    assert again.digest == solo_digest(bert, stopped)


@pytest.mark.parametrize("exactness", [Exactness(), Exactness(probed=True)], ids=["one", "turns"])
def test_a_wish_is_heard_while_another_job_evaluates(exactness: Exactness, bert: Base) -> None:
    slow = Person(job(epochs=2, eval_every_steps=3), CLASSIFICATION)
    patient = Person(job(epochs=4, seed=2), SHORT)

    def evaluating() -> bool:
        told = [e.data["name"] for e in slow.events if e.kind == "metric"]
        return any(name.startswith("validation/") for name in told)

    patient.wish = lambda _: "cancel" if evaluating() else None
    train_all(bert, [slow, patient], exactness=replace(exactness))
    (end,) = patient.ends
    assert isinstance(end, TrainingResult)
    assert end.outcome == "cancelled"
    assert slow.digest == solo_digest(bert, slow)


@pytest.mark.parametrize("company", [0, 2])
def test_after_a_kill_the_bytes_are_the_same_alone_or_in_company(company: int, bert: Base) -> None:
    class Killed(BaseException):
        pass

    class Fragile(Shelf):
        def save(self, step: int, state: bytes, delta: Delta) -> None:
            super().save(step, state, delta)
            if step == 4:
                raise Killed

    first, second, third = three()
    first.shelf = Fragile()
    with pytest.raises(Killed):
        train_all(bert, [first, second, third], checkpoint_seconds=0)
    again = [Person(p.spec, p.splits) for p in (first, second, third)[: company + 1]]
    for person, before in zip(again, (first, second, third), strict=False):
        person.shelf.kept = before.shelf.kept[:]
    train_all(bert, again, checkpoint_seconds=0)
    for person in again:
        assert "resumed at step" in person.log
        assert person.digest == solo_digest(bert, person)


# ---- who joins, and what is said --------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"adversarial": {"type": "fgm"}}, "adversarial training needs forwards of its own"),
        ({"gradient_checkpointing": True}, "its layers are computed twice"),
        ({"method": {"type": "prefix", "length": 3}}, "the method prefix acts inside attention"),
        ({"method": {"type": "lora", "layers": {"last": 1}}}, "it reuses frozen layers"),
    ],
)
def test_a_job_that_cannot_join_takes_turns(
    training: dict[str, Any], reason: str, bert: Base
) -> None:
    odd = Person(job(epochs=2, **training), SHORT)
    others = [Person(job(epochs=2, seed=s), SHORT) for s in (1, 2)]
    rooms: list[int] = []
    train_all(bert, [odd, *others], rooms=rooms)
    assert f"takes turns with 2 other jobs on the same base: {reason}" in odd.log
    assert odd.most_beside == 0
    assert [person.most_beside for person in others] == [1, 1]
    assert rooms[0] == 0
    for person in (odd, *others):
        assert person.digest == solo_digest(bert, person)


def test_an_encoder_decoder_base_takes_turns(t5: Base) -> None:
    people = [Person(job("text-generation", max_steps=2, seed=s), GENERATION) for s in (1, 2)]
    train_all(t5, people)
    assert "has no attention that batches of several jobs could share" in people[0].log
    assert people[0].digest == solo_digest(t5, people[0])


@pytest.mark.parametrize("gain", [0.5, 1.04])
def test_jobs_take_turns_where_one_forward_gains_nothing(gain: float, bert: Base) -> None:
    people, rooms = three(), list[int]()
    train_all(bert, people, gain=gain, rooms=rooms)
    assert f"one forward was measured {gain:.2f} x as fast" in people[0].log
    assert 0 in rooms
    for person in people:
        assert person.digest == solo_digest(bert, person)


def test_memory_of_one_forward_bounds_who_joins(bert: Base) -> None:
    people, rooms = three(), list[int]()
    train_all(bert, people, limits=Limits(jobs=8, step_bytes=1000), rooms=rooms)
    assert [person.most_beside for person in people] == [0, 0, 0]
    assert set(rooms) == {0}
    assert people[0].digest == solo_digest(bert, people[0])
    rooms.clear()
    train_all(bert, [Person(job(epochs=1), SHORT)], rooms=rooms)
    assert rooms[0] == 31


def test_a_slow_forward_is_tried_three_times_and_its_memory_returned(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs need two forwards: the second must not be shared in the step that decides."""
    sizes, returned = list[int](), list[int]()

    def count(base: Base, router: Router, shares: Sequence[Share]) -> list[BatchLoss]:
        sizes.append(len(shares))
        return learn_together(base, router, shares)

    monkeypatch.setattr(together_module, "learn_together", count)
    monkeypatch.setattr(together_module, "kept_bytes", lambda *_: 1)
    monkeypatch.setattr(together_module, "return_freed_memory", lambda: returned.append(len(sizes)))
    people = [Person(job(max_steps=6, seed=seed), SHORT) for seed in range(4)]
    train_all(bert, people, limits=Limits(jobs=8, step_bytes=2), gain=0.9)
    assert sizes == [2, 2, 2]
    assert returned == [3, 3]  # when they began to take turns, and when the last one left


def test_measuring_a_step_keeps_nothing(bert: Base) -> None:
    """A graph that knows what it keeps in a circle is found by no collector: it lives for ever."""
    found: list[tuple[int, int, int]] = []

    def look(share: Share, router: Router, base: Base) -> int:
        before = _live_tensors()
        first = kept_bytes(share, router, base)
        found.append((first, kept_bytes(share, router, base), _live_tensors() - before))
        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together_module, "kept_bytes", look)
        train_all(bert, [Person(job(max_steps=1, seed=seed), SHORT) for seed in range(2)])
    assert len(found) == 2
    for first, second, left_over in found:
        assert first == second > 0
        assert left_over == 0


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_is_returned() -> None:
    blocks = [bytearray(100_000) for _ in range(300)]  # small enough for the heap, 30 MB in all
    kept = blocks[-1]
    del blocks
    before = _resident_bytes()
    return_freed_memory()
    assert before - _resident_bytes() > 15_000_000
    assert len(kept) == 100_000


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_a_machine_with_other_products_takes_turns(sentence_bert: Base) -> None:
    """On whatever device there is."""
    people = three()
    train_all(sentence_bert, people, exactness=Exactness(probed=True, least_places=None))
    assert "one forward would not give the very same bytes on this machine" in people[0].log
    assert people[0].digest == solo_digest(sentence_bert, people[0])


@pytest.mark.parametrize("fault", ["inexact", "raises"])
def test_a_joint_step_that_is_not_right_is_not_used(fault: str, bert: Base) -> None:
    calls = itertools.count()

    def faulty(base: Base, router: Router, shares: Sequence[Share]) -> list[BatchLoss]:
        found = learn_together(base, router, shares)
        if fault == "raises" and next(calls) >= 3:
            raise RuntimeError("out of memory")
        if fault == "inexact":
            leaf = next(iter(shares[0].stepper.job.trainable.tensors.values()))
            assert leaf.grad is not None
            leaf.grad *= 1.0000002
        return found

    people, exactness = three(), Exactness()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together_module, "learn_together", faulty)
        train_all(bert, people, exactness=exactness)
    assert (exactness.least_places is None) == (fault == "inexact")
    for person in people:
        assert person.digest == solo_digest(bert, person)
