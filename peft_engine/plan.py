"""A plan: which delta acts on which row of one batch. Immutable, built per batch.

Which delta acts is never state of the model, so a failed batch cannot leak into the next one.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from peft_engine.delta import Delta
from peft_engine.errors import PlanError
from peft_engine.methods.protocol import Method
from peft_engine.methods.table import METHODS, ORDER
from peft_engine.parts.dropout import Dropout
from peft_engine.parts.joining import Joint, apart
from peft_engine.parts.segments import Scratch, Segment, Segments

SiteTensors = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
"""``{site path: {method: {name: tensor}}}``."""


@dataclass(frozen=True)
class Actor:
    """Tensors that act on some rows: a resident delta, or the parameters in training.

    Attributes:
        configs: Configuration of each method by its name.
        sites: Tensors by site, method and name.
        dropout: Dropout of each method by its name while training.
        frozen: Whether the tensors can no longer change, so that what is made of them may be kept.
    """

    configs: Mapping[str, object]
    sites: SiteTensors
    dropout: Mapping[str, Dropout]
    frozen: bool = False
    _memos: dict[tuple[str, str], dict[str, Any]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def segment(self, path: str, method: str, lo: int, hi: int) -> Segment:
        """Its tensors of one method at one site, over some rows.

        Args:
            path: The site.
            method: Name of the method.
            lo: First row.
            hi: Row after the last.

        Returns:
            The segment.
        """
        return Segment(
            self.sites[path][method],
            self.configs[method],
            lo,
            hi,
            self.dropout.get(method),
            path,
            self.frozen,
            self._memos.setdefault((path, method), {}),
        )

    @classmethod
    def of(cls, delta: Delta) -> "Actor":
        """The actor of a delta that only answers.

        Args:
            delta: The delta, on the device of the base.

        Returns:
            The actor; make it once for a delta, since plans share it.
        """
        configs: dict[str, object] = {m.type: m for m in delta.manifest.methods}
        return cls(configs, delta.at_sites(), {}, frozen=True)


@dataclass(frozen=True)
class Stage:
    """What one method does at one site in this batch."""

    method: Method
    segments: Segments


@dataclass(frozen=True)
class Plan:
    """Rows of a batch, sorted so that those of one delta stand together.

    Attributes:
        rows: Rows of the batch.
        order: ``order[i]`` is the row as it was given that stands at sorted place ``i``.
        stages: Stages of each site, in the fixed order of the methods.
    """

    rows: int
    order: tuple[int, ...]
    stages: Mapping[str, tuple[Stage, ...]]

    @classmethod
    def build(cls, actors: Sequence[Actor | None]) -> "Plan":
        """Plan a batch.

        Args:
            actors: The actor of each row; None is the plain base. The same object for the same
                delta.

        Returns:
            The plan. Rows of the plain base stand last.
        """
        groups: dict[int, list[int]] = {}
        by_id: dict[int, Actor] = {}
        plain: list[int] = []
        for row, actor in enumerate(actors):
            if actor is None:
                plain.append(row)
            else:
                groups.setdefault(id(actor), []).append(row)
                by_id[id(actor)] = actor
        order = [row for rows in groups.values() for row in rows] + plain
        bounds: list[tuple[Actor, int, int]] = []
        lo = 0
        for key, rows in groups.items():
            bounds.append((by_id[key], lo, lo + len(rows)))
            lo += len(rows)
        return cls(len(actors), tuple(order), _stages(bounds, len(actors)))

    @classmethod
    def in_order(cls, actors: Sequence[Actor | None]) -> "Plan":
        """Plan a batch whose rows must stay where they are.

        Args:
            actors: The actor of each row; None is the plain base. The same object for the same
                delta.

        Returns:
            The plan; a delta whose rows do not stand together has several segments.
        """
        bounds: list[tuple[Actor, int, int]] = []
        lo = 0
        for _, run in itertools.groupby(actors, key=id):
            own = list(run)
            if own[0] is not None:
                bounds.append((own[0], lo, lo + len(own)))
            lo += len(own)
        rows = len(actors)
        return cls(rows, tuple(range(rows)), _stages(bounds, rows))

    @classmethod
    def joint(cls, actors: Sequence[Actor], joint: Joint) -> "Plan":
        """Plan batches that go through the base together, each under a delta of its own.

        Args:
            actors: The actor of each batch.
            joint: The batches.

        Returns:
            A plan of as many rows as there are places. Each method is given each batch as if it
            were alone: what it computes, and in which order it adds, does not depend on the others.
        """
        at: dict[str, dict[str, dict[int, Segments]]] = {}
        for place, (actor, strip) in enumerate(zip(actors, joint.strips, strict=True)):
            rows = strip.shape[0]
            for path, methods in actor.sites.items():
                for name in methods:
                    own = Segments((actor.segment(path, name, 0, rows),), rows)
                    at.setdefault(path, {}).setdefault(name, {})[place] = own
        stages = {
            path: tuple(
                # At a site it stands for the method; configurations are none of its business.
                Stage(cast(Method, Apart(METHODS[name], methods[name], joint)), _NONE)
                for name in ORDER
                if name in methods
            )
            for path, methods in at.items()
        }
        return cls(joint.places, tuple(range(joint.places)), stages)

    def sort(self, rows: Sequence[object]) -> list[object]:
        """Values of the rows in sorted order.

        Args:
            rows: A value for each row as it was given.

        Returns:
            The same values in the order in which the model sees them.
        """
        return [rows[row] for row in self.order]


class Apart:
    """A method that is given each of several batches as if it were alone.

    Args:
        method: The method.
        own: Segments of the batches on which it acts, by the number of the strip.
        joint: The batches.
    """

    def __init__(self, method: Method, own: Mapping[int, Segments], joint: Joint) -> None:
        self.name, self.has_pre = method.name, method.has_pre
        self._method, self._own, self._joint = method, own, joint

    def pre(self, module: nn.Module, segments: Segments, x: Tensor) -> Tensor:  # noqa: ARG002
        """What the site is given, batch by batch.

        Args:
            module: The frozen module at the site.
            segments: Not looked at.
            x: (P, 1, in).

        Returns:
            (P, 1, in).
        """

        def change(place: int, own: Tensor) -> Tensor:
            acting = self._own.get(place)
            return own if acting is None else self._method.pre(module, acting, own)

        return apart(self._joint, x, change)

    def post(
        self,
        module: nn.Module,
        segments: Segments,  # noqa: ARG002 those of each batch are known
        x: Tensor,
        y: Tensor,
    ) -> Tensor:
        """What the site gives, batch by batch.

        Args:
            module: The frozen module at the site.
            segments: Not looked at.
            x: (P, 1, …) what the site was given.
            y: (P, 1, out) what it made of it.

        Returns:
            (P, 1, out).
        """
        given = self._joint.parts(x)

        def change(place: int, own: Tensor) -> Tensor:
            acting = self._own.get(place)
            if acting is None:
                return own
            return self._method.post(module, acting, given[place], own)

        return apart(self._joint, y, change)

    def attend(self, *_: Any, **__: Any) -> Tensor:
        """Methods inside attention do not join.

        Raises:
            PlanError: Always (``not_joint``).
        """
        raise PlanError("a method inside attention cannot be joined", code="not_joint")


_NONE = Segments((), 0)
"""A stage of batches that stand apart has the segments of each in its method."""


def _stages(bounds: Sequence[tuple[Actor, int, int]], rows: int) -> dict[str, tuple[Stage, ...]]:
    found: dict[str, dict[str, list[Segment]]] = {}
    for actor, lo, hi in bounds:
        for path, methods in actor.sites.items():
            for name in methods:
                segment = actor.segment(path, name, lo, hi)
                found.setdefault(path, {}).setdefault(name, []).append(segment)
    scratch: Scratch = {}
    return {
        path: tuple(
            Stage(METHODS[name], Segments(tuple(methods[name]), rows, scratch))
            for name in ORDER
            if name in methods
        )
        for path, methods in found.items()
    }
