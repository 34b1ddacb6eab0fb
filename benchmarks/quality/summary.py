"""From finished runs to one figure for each set and method, and to what was promised of them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.quality.grid import METHODS, SETS
from benchmarks.quality.jobs import QualityJob
from benchmarks.quality.peer_jobs import RECIPES as PEER_RECIPES
from benchmarks.quality.peer_jobs import PeerJob

LOWER_IS_BETTER = frozenset({"loss"})
FULL_BAR = {"lora": (0.005, 0.03), "bottleneck": (0.005, 0.03), "bitfit": (0.015, 0.001)}
"""How far a method may lie behind full fine-tuning, and its largest share of the base's numbers."""
SEEDS_THAT_COUNT = 3
"""A difference holds when it is over the interval of the rows, or over so many seeds on both sides
(the data sets' own README)."""


@dataclass(frozen=True)
class Cell:
    """A method on a set.

    Attributes:
        set: The set.
        method: The method.
        metric: What is compared.
        mean: Mean over seeds on the test split.
        spread: Standard deviation over seeds; None of a single one.
        seeds: Which seeds.
        before: The untuned base on the same rows.
        frozen_head: A head on the frozen base; None for a task without one.
        interval: Half of the 95 % interval of a run's gain over the untuned base, mean over seeds.
        share: Numbers that learn beside the head, as a share of the base.
        seconds: Processor seconds of a run, mean over seeds.
    """

    set: str
    method: str
    metric: str
    mean: float
    spread: float | None
    seeds: tuple[int, ...]
    before: float
    frozen_head: float | None
    interval: float
    share: float
    seconds: float


def is_current(line: Mapping[str, Any]) -> bool:
    """Whether a run was made with today's defaults.

    Args:
        line: Its line in the journal.

    Returns:
        False when the recipe, an option's default or the bounds have changed since.
    """
    if line["set"] not in SETS or line["method"] not in METHODS:
        return False
    return bool(QualityJob(line["set"], line["method"], line["seed"]).key == line["key"])


def is_current_peer(line: Mapping[str, Any]) -> bool:
    """The same for a run of the peer.

    Args:
        line: Its line in the journal.

    Returns:
        False when its recipe has changed since.
    """
    if line["set"] not in SETS or line["method"] not in PEER_RECIPES:
        return False
    return bool(PeerJob(line["set"], line["method"], line["seed"]).key == line["key"])


def summarise(lines: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """Figures of all sets and methods that were run.

    Args:
        lines: Current runs.

    Returns:
        Cells in the order of the tables.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["set"], line["method"]), []).append(line)
    return [
        _cell(groups[name, method])
        for name in SETS
        for method in METHODS
        if (name, method) in groups
    ]


def _cell(lines: Sequence[Mapping[str, Any]]) -> Cell:
    first, metric = lines[0], lines[0]["metric"]
    own = [line["test"]["after"][metric] for line in lines]
    floors = [line["test"].get("frozen_head", {}).get(metric) for line in lines]
    intervals = [line["test"]["confidence_interval"].get(metric) for line in lines]
    return Cell(
        set=first["set"],
        method=first["method"],
        metric=metric,
        mean=statistics.mean(own),
        spread=statistics.stdev(own) if len(own) > 1 else None,
        seeds=tuple(sorted(line["seed"] for line in lines)),
        before=statistics.mean(line["test"]["before"].get(metric, 0.0) for line in lines),
        frozen_head=floors[0],
        interval=statistics.mean((i[1] - i[0]) / 2 for i in intervals if i is not None),
        share=first["delta_parameters"] / first["base_parameters"],
        seconds=statistics.mean(line["processor_seconds"] for line in lines),
    )


def peer_means(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Mean of the peer and its number of seeds, by set and method.

    Args:
        lines: Current runs of the peer.

    Returns:
        Means on the test split.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        value = line["test"]["after"][line["metric"]]
        groups.setdefault((line["set"], line["method"]), []).append(value)
    return {key: (statistics.mean(own), len(own)) for key, own in groups.items()}


def lead(value: float, over: float, metric: str) -> float:
    """How much better one value is than another.

    Args:
        value: The one.
        over: The other.
        metric: Of ``loss`` less is better.

    Returns:
        Above 0 when it is better.
    """
    return over - value if metric in LOWER_IS_BETTER else value - over


def in_units(value: float, metric: str, *, sign: str = "") -> str:
    """A value or a difference as the tables tell it.

    Args:
        value: What is told.
        metric: Loss has three digits, BLEU one; all others count in points.
        sign: ``"+"`` for a sign before what is above 0 too.

    Returns:
        The text.
    """
    if metric == "loss":
        return f"{value:{sign}.3f}"
    return f"{value if metric == 'bleu' else 100 * value:{sign}.1f}"


def allowed_distance(method: str, metric: str) -> float:
    """How far a method may lie behind full fine-tuning.

    Args:
        method: The method.
        metric: What is compared; BLEU counts in points.

    Returns:
        The distance in units of the metric; infinity where none was promised.
    """
    if method not in FULL_BAR:
        return math.inf
    return FULL_BAR[method][0] * (100 if metric == "bleu" else 1)


def judge(
    cells: Sequence[Cell], peers: Mapping[tuple[str, str], tuple[float, int]]
) -> list[dict[str, Any]]:
    """Hold every figure against what was promised.

    Args:
        cells: Figures.
        peers: Means of the peer.

    Returns:
        For each promise and figure: ``claim``, ``set``, ``method``, ``lead``, the fewest ``seeds``
        of a side, the ``interval`` of the rows, whether it is ``met``, and if not, whether that
        ``counts`` or may be noise. Sets that are hard on purpose are judged as well, and marked.
    """
    full = {cell.set: cell for cell in cells if cell.method == "full"}
    found: list[dict[str, Any]] = []

    def note(
        claim: str, cell: Cell, by: float, *, needed: float = 0.0, beside: int | None = None
    ) -> None:
        met = by > needed if needed == 0 else by >= needed
        seeds = min(len(cell.seeds), beside or len(cell.seeds))
        found.append(
            {
                "claim": claim,
                "set": cell.set,
                "method": cell.method,
                "lead": by,
                "met": met,
                "seeds": seeds,
                "interval": cell.interval,
                "counts": not met and (seeds >= SEEDS_THAT_COUNT or -by > cell.interval),
                "feasible": SETS[cell.set].feasible,
            }
        )

    for cell in cells:
        own = SETS[cell.set]
        if own.floor is not None:
            note("beats the floor", cell, lead(cell.mean, own.floor, cell.metric))
        note("beats the untuned base", cell, lead(cell.mean, cell.before, cell.metric))
        if cell.method in FULL_BAR and cell.set in full:
            by = lead(cell.mean, full[cell.set].mean, cell.metric)
            needed = -allowed_distance(cell.method, cell.metric)
            beside = len(full[cell.set].seeds)
            note("close to full fine-tuning", cell, by, needed=needed, beside=beside)
            share = FULL_BAR[cell.method][1] - cell.share
            note("small enough", replace(cell, interval=0.0), share, needed=1e-9)
        peer = peers.get((cell.set, cell.method))
        if peer is not None:
            by = lead(cell.mean, peer[0], cell.metric)
            note("no worse than the peer", cell, by, needed=-cell.interval, beside=peer[1])
    return found


def as_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as JSON values.

    Args:
        cells: The cells.

    Returns:
        One object each.
    """
    return [asdict(cell) for cell in cells]
