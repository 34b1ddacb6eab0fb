"""What the deltas of one forward do on the fast path, site by site.

The general way is that of the router: ``pre`` and ``post`` of each method, on views of a fused
product. LoRA has shorter ways. All change outputs in place and leave the rows of others alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from peft_engine.decoding.forward import Stage, Stages
from peft_engine.decoding.llama import Fused, Llama
from peft_engine.decoding.lora_stack import Acting, LoraGroups, LoraStack
from peft_engine.methods.lora import is_plain, plain_factors
from peft_engine.parts.segments import Segment
from peft_engine.parts.sites import ATTENTION

# Legend of axes: B rows, T tokens of a row, N tokens of all rows, I input width, O output width.


class Changes(Protocol):
    """What happens around the base's own computation.

    Attributes:
        order: The row at each place of the forward, which this wants; None: as rows are given.
    """

    order: tuple[int, ...] | None

    def only_adds(self, fused: Fused) -> bool:
        """Whether ``leave`` adds what depends on the input alone, so that it may come later."""

    def touches(self, path: str) -> bool:
        """Whether anything happens at a module as a whole."""

    def enter(self, fused: Fused, x: Tensor) -> Tensor:
        """What a fused linear of one part is given in place of (N, I)."""

    def leave(self, fused: Fused, x: Tensor, y: Tensor) -> None:
        """Change its output (N, O) in place; ``x`` is what ``enter`` gave."""

    def at(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(N, …) in place of what a module made of (N, …)."""


class NoChanges:
    """The plain base."""

    order: tuple[int, ...] | None = None

    def only_adds(self, fused: Fused) -> bool:  # noqa: ARG002
        """Nothing is added."""
        return True

    def touches(self, path: str) -> bool:  # noqa: ARG002
        """Nothing is touched."""
        return False

    def enter(self, fused: Fused, x: Tensor) -> Tensor:  # noqa: ARG002
        """(N, I) as it is."""
        return x

    def leave(self, fused: Fused, x: Tensor, y: Tensor) -> None:
        """Nothing happens."""

    def at(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """(N, …) as it is."""
        return y


class PackedLora(NoChanges):
    """LoRA, and nothing else, on rows whose tokens stand one after the other without padding.

    Args:
        stages: What the deltas do.
        ends: Number of the token after the last of each row, with 0 before them all.
    """

    def __init__(self, stages: Stages, ends: Sequence[int]) -> None:
        self._stages = stages
        self._ends = ends

    def leave(self, fused: Fused, x: Tensor, y: Tensor) -> None:
        """Add each row's own update to (N, O)."""
        for path, (lo, hi) in zip(fused.paths, fused.bounds, strict=True):
            for stage in self._stages.get(path, ()):
                for segment in stage.segments:
                    tokens = slice(self._ends[segment.lo], self._ends[segment.hi])
                    down, up = plain_factors(segment)
                    low = x[tokens] @ down.T.to(x.dtype)  # (tokens, r)
                    y[tokens, lo:hi].addmm_(low, up.T.to(x.dtype))


@dataclass(frozen=True)
class _Rest:
    """What is left at one linear once LoRA is added for all linears of its site.

    Attributes:
        part: Number of the linear.
        stages: The stages after that.
        all_: All stages, for the case that the linear is given another input.
    """

    part: int
    stages: Sequence[Stage]
    all_: Sequence[Stage]


class RowChanges:
    """Deltas of every kind on rows of equal length.

    Args:
        stages: What the deltas do.
        llama: The base.
        rows: B.
        stacks: Where LoRA of all deltas is computed at once, by the paths of a site.

    Attributes:
        order: Rows of a delta side by side, where LoRA is all that happens: methods of other kinds
            are told of rows as they were given.
    """

    def __init__(
        self,
        stages: Stages,
        llama: Llama,
        *,
        rows: int,
        stacks: Mapping[tuple[str, ...], LoraStack],
    ) -> None:
        self._stages = stages
        self._rows = rows
        self._rests: dict[tuple[str, ...], list[_Rest]] = {}
        sites = [
            fused
            for layer in llama.layers
            for fused in (layer.qkv, layer.o, layer.gate_up, layer.down)
        ]
        stacked = {
            fused.paths: stacks[fused.paths].arrange(actings)
            for fused in sites
            if (actings := self._sort(fused, stacks.get(fused.paths)))
        }
        is_only_lora = bool(stacked) and is_lora_only(stages, llama)
        self.order = _side_by_side(stacked.values(), rows) if is_only_lora else None
        indices: dict[tuple[int, ...], Tensor] = {}
        self._groups = {
            paths: LoraGroups(stacks[paths], actings, rows=rows, order=self.order, indices=indices)
            for paths, actings in stacked.items()
        }

    def only_adds(self, fused: Fused) -> bool:
        """Whether there is nothing but LoRA of several deltas at once."""
        return fused.paths not in self._rests

    def touches(self, path: str) -> bool:
        """Whether a method acts at the module."""
        return path in self._stages

    def enter(self, fused: Fused, x: Tensor) -> Tensor:
        """What methods make of the input (N, I) of a linear that stands alone."""
        if len(fused.paths) > 1 or fused.paths not in self._rests:
            return x
        (rest,) = self._rests[fused.paths]
        return self._before(fused.modules[0], rest.all_, self._by_row(x)).reshape(x.shape)

    def leave(self, fused: Fused, x: Tensor, y: Tensor) -> None:
        """Change (N, O) in place."""
        groups = self._groups.get(fused.paths)
        if groups is not None:
            groups.add(x, y)
        rows = self._by_row(x)
        for rest in self._rests.get(fused.paths, ()):
            module, (lo, hi) = fused.modules[rest.part], fused.bounds[rest.part]
            own = self._by_row(y)[..., lo:hi]
            changed, found, stages = rows, own, rest.stages
            if len(fused.paths) > 1:
                changed = self._before(module, rest.all_, rows)
                if changed is not rows:
                    # Not `module(changed)`: its hooks would let the plan act a second time.
                    found, stages = module.forward(changed), rest.all_
            for stage in stages:
                found = stage.method.post(module, stage.segments, changed, found)
            if found is not own:
                own.copy_(found)

    def at(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What methods make of the output (N, …) of a module."""
        stages = self._stages.get(path, ())
        if not stages:
            return y
        rows, found = self._by_row(x), self._by_row(y)
        for stage in stages:
            found = stage.method.post(module, stage.segments, rows, found)
        return found.reshape(y.shape)

    def _by_row(self, values: Tensor) -> Tensor:
        """(N, …) as (B, T, …)."""
        return values.view(self._rows, -1, *values.shape[1:])

    @staticmethod
    def _before(module: nn.Module, stages: Sequence[Stage], x: Tensor) -> Tensor:
        for stage in stages:
            if stage.method.has_pre:
                x = stage.method.pre(module, stage.segments, x)
        return x

    def _sort(self, fused: Fused, stack: LoraStack | None) -> list[Acting]:
        """Divide the stages at a site: LoRA of all deltas at once, and the rest."""
        stacked: dict[tuple[int, ...], list[tuple[int, Segment]]] = {}
        for part, path in enumerate(fused.paths):
            stages = self._stages.get(path, ())
            rest = list(stages)
            if stack is not None:
                rest = [stage for stage in stages if not _stacks(stage)]
                for stage in stages:
                    for segment, rows in stage.segments.by_delta if _stacks(stage) else ():
                        places = tuple(row for run in rows for row in range(run.start, run.stop))
                        stacked.setdefault(places, []).append((part, segment))
            if rest:
                self._rests.setdefault(fused.paths, []).append(_Rest(part, rest, stages))
        return [Acting(tuple(parts), rows) for rows, parts in stacked.items()]


def _side_by_side(sites: Iterable[Sequence[Acting]], rows: int) -> tuple[int, ...]:
    """The order in which rows of a delta stand together at the site that most rows meet."""
    widest = max(sites, key=lambda actings: sum(len(acting.rows) for acting in actings))
    order = [row for acting in widest for row in acting.rows]
    return (*order, *sorted(set(range(rows)) - set(order)))


def _stacks(stage: Stage) -> bool:
    return stage.method.name == "lora" and is_plain(stage.segments)


def is_lora_only(stages: Stages, llama: Llama) -> bool:
    """Whether all that happens is plain LoRA at linears.

    Args:
        stages: What the deltas do.
        llama: The base.

    Returns:
        True for the plain base too.
    """
    linears = {
        path
        for layer in llama.layers
        for fused in (layer.qkv, layer.o, layer.gate_up, layer.down)
        for path in fused.paths
    }
    return all(
        path in linears and all(map(_stacks, found)) for path, found in stages.items() if found
    )


def is_known(stages: Stages, llama: Llama, *, one_token: bool) -> bool:
    """Whether the fast path has every site at which these deltas act.

    Args:
        stages: What the deltas do.
        llama: The base.
        one_token: Whether every row has one token: only then attention can be changed.

    Returns:
        False: the base's own modules must compute this forward.
    """
    known = llama.paths
    attentions = {layer.attention_path + ATTENTION for layer in llama.layers}
    return all(path in known or (one_token and path in attentions) for path in stages)
