"""How far each method is from full fine-tuning, and where it passes what costs nothing."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.quality.grid import METHODS, SETS
from benchmarks.quality.peer_jobs import RECIPES as PEER_RECIPES
from benchmarks.quality.summary import Cell, allowed_distance, in_units, lead

HEAD = (
    "method",
    "share",
    "above the floor",
    "above the untuned base",
    "points to full on encoders (worst)",
    "BLEU to full",
    "loss to full",
)


def overview(
    cells: Sequence[Cell], peers: Mapping[tuple[str, str], tuple[float, int]]
) -> list[list[str]]:
    """Sum up the table by its columns.

    Args:
        cells: Figures of sets and methods.
        peers: Means and numbers of seeds of the peer, by set and method.

    Returns:
        Rows of texts, ``HEAD`` first. Leads are above 0 where the method is better, also in loss,
        and means over the sets on which both it and our full fine-tuning have run: how many stands
        behind them where it is not all of that kind.
    """
    full = {cell.set: cell for cell in cells if cell.method == "full"}
    rows = [list(HEAD)]
    for method in METHODS:
        own = [cell for cell in cells if cell.method == method]
        shares = [cell.share for cell in own if SETS[cell.set].base == "minilm"]
        means = {cell.set: cell.mean for cell in own}
        if own:
            share = f"{shares[0]:.2%}" if shares else "-"
            rows.append([f"`{method}`", share, *_passed(means, full), *_to_full(means, full)])
    for method in PEER_RECIPES:
        means = {name: mean for (name, kind), (mean, _) in peers.items() if kind == method}
        if means:
            rows.append([f"PEFT {method}", "-", *_passed(means, full), *_to_full(means, full)])
    return rows


def distances(cells: Sequence[Cell]) -> list[list[str]]:
    """How far each method is from full fine-tuning, set by set.

    Args:
        cells: Figures of sets and methods.

    Returns:
        Rows of texts, a head first: leads over full fine-tuning in points, BLEU or loss, above 0
        where the method is better; bold where it is further behind than was promised of it.
    """
    full = {cell.set: cell for cell in cells if cell.method == "full"}
    by_place = {(cell.set, cell.method): cell for cell in cells}
    methods = [method for method in METHODS if method != "full"]
    rows = [["set", "in", *methods]]
    for name, own in SETS.items():
        if name in full:
            unit = own.metric if own.metric in ("bleu", "loss") else "points"
            leads = [_distance(by_place.get((name, method)), full[name]) for method in methods]
            rows.append([f"`{name}`", unit, *leads])
    return rows


def _distance(cell: Cell | None, full: Cell) -> str:
    if cell is None:
        return "-"
    by = lead(cell.mean, full.mean, cell.metric)
    told = in_units(by, cell.metric, sign="+")
    return f"**{told}**" if by < -allowed_distance(cell.method, cell.metric) else told


def _passed(means: Mapping[str, float], full: Mapping[str, Cell]) -> list[str]:
    floors = {name: floor for name in means if (floor := SETS[name].floor) is not None}
    untuned = {name: full[name].before for name in means if name in full}
    return [_count_above(means, floors), _count_above(means, untuned)]


def _count_above(means: Mapping[str, float], others: Mapping[str, float]) -> str:
    count = sum(lead(means[name], other, SETS[name].metric) > 0 for name, other in others.items())
    return f"{count} of {len(others)}"


def _to_full(means: Mapping[str, float], full: Mapping[str, Cell]) -> list[str]:
    leads = {
        name: lead(mean, full[name].mean, SETS[name].metric)
        for name, mean in means.items()
        if name in full
    }
    bleu = [name for name, own in SETS.items() if own.metric == "bleu"]
    loss = [name for name, own in SETS.items() if own.metric == "loss"]
    shares = [name for name in SETS if name not in {*bleu, *loss}]  # from 0 to 1, told in points
    points = {name: 100 * leads[name] for name in shares if name in leads}
    return [
        _mean(points, shares, "{:+.1f}") + _worst(points),
        _mean(leads, bleu, "{:+.1f}"),
        _mean(leads, loss, "{:+.3f}"),
    ]


def _mean(leads: Mapping[str, float], names: Sequence[str], form: str) -> str:
    own = [leads[name] for name in names if name in leads]
    if not own:
        return "-"
    count = "" if len(own) == len(names) else f" ({len(own)} of {len(names)} sets)"
    return form.format(statistics.mean(own)) + count


def _worst(leads: Mapping[str, float]) -> str:
    if not leads or not any(leads.values()):
        return ""
    name = min(leads, key=lambda set_name: leads[set_name])
    return f" ({leads[name]:+.1f} on `{name}`)"
