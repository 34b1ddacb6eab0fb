"""``python -m benchmarks quality-report``: tables and plots of the runs that there are.

Writes ``benchmarks/results/quality.json``, the part of ``docs/quality.md`` between its marks, and
``docs/figures/quality-*.svg``. Runs of earlier recipes are left out and counted.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import METHODS, SEEDS, SETS, is_trained
from benchmarks.quality.journal import Journal
from benchmarks.quality.overview import distances, overview
from benchmarks.quality.peer_jobs import RECIPES as PEER_RECIPES
from benchmarks.quality.peers import JOURNAL as PEER_JOURNAL
from benchmarks.quality.run import JOURNAL
from benchmarks.quality.summary import (
    Cell,
    as_json,
    in_units,
    is_current,
    is_current_peer,
    judge,
    peer_means,
    summarise,
)
from benchmarks.record import write_result

BEGIN, END = "<!-- results: made by quality-report -->", "<!-- end of results -->"
Peers = Mapping[tuple[str, str], tuple[float, int]]


def main() -> None:
    """Read, sum up, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    lines, peer_lines = list(Journal(JOURNAL)), list(Journal(PEER_JOURNAL))
    current = [line for line in lines if is_current(line)]
    cells = summarise(current)
    peers = peer_means(line for line in peer_lines if is_current_peer(line))
    verdicts = judge(cells, peers)
    page = asked.docs / "quality.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    stale = len(lines) - len(current)
    devices = Counter(f"{line['device']} in {line['precision']}" for line in current)
    made = "\n".join([BEGIN, "", *_results(cells, peers, verdicts, stale, devices), "", END])
    page.write_text(before + made + after)
    # Imported late: everything else works without a library for plots.
    from benchmarks.quality.plots import draw

    draw(cells, peers, asked.docs / "figures")
    write_result(
        "quality",
        summary={
            "runs": len(current),
            "runs_of_earlier_recipes": stale,
            "promises": len(verdicts),
            "met": sum(verdict["met"] for verdict in verdicts),
        },
        runs=[{"cells": as_json(cells), "verdicts": verdicts}],
    )


def _results(
    cells: Sequence[Cell],
    peers: Peers,
    verdicts: Sequence[Mapping[str, Any]],
    stale: int,
    devices: Mapping[str, int],
) -> list[str]:
    done = sum(len(cell.seeds) for cell in cells)
    planned = len(SEEDS) * sum(is_trained(name, method) for name in SETS for method in METHODS)
    made_on = ", ".join(f"{count} on {name}" for name, count in devices.items())
    lines = [
        f"{done} of {planned} runs with today's defaults ({made_on}; {stale} of earlier recipes "
        'are left out). A dash is a run that has not been made; "none" is a head alone where the '
        "task has no head.",
        "",
        "At a glance, means over sets (a lead is above 0 where the method is better, in loss too; "
        "what lies behind a mean stands below):",
        "",
        *_table(overview(cells, peers)),
        "",
        "Distance to full fine-tuning (above 0: better than it; bold: further behind than was "
        "promised of it):",
        "",
        *_table(distances(cells)),
        "",
        "All of it:",
        "",
        *_main_table(cells, peers),
        "",
        "Shares of the base's numbers that learn, heads apart, and processor seconds of one run on "
        "the machine that made it:",
        "",
        *_cost_table(cells),
        "",
        f"Promises that are not met: {sum(not v['met'] for v in verdicts)} of {len(verdicts)}, "
        f"{sum(v['counts'] for v in verdicts)} of them beyond doubt (`counts`; `lead` and "
        "`interval` in units of the metric):",
        "",
        *_missed(verdicts),
    ]
    return lines


def _main_table(cells: Sequence[Cell], peers: Peers) -> list[str]:
    by_place = {(cell.set, cell.method): cell for cell in cells}
    head = ["set", "metric", "floor", "untuned", "frozen head", *METHODS]
    head += [f"PEFT {method}" for method in PEER_RECIPES]
    rows = [head]
    for name, own in SETS.items():
        present = [by_place[name, method] for method in METHODS if (name, method) in by_place]
        first = present[0] if present else None
        rows.append(
            [
                f"`{name}`",
                own.metric,
                "-" if own.floor is None else in_units(own.floor, own.metric),
                "-" if first is None else in_units(first.before, own.metric),
                "-"
                if first is None or first.frozen_head is None
                else in_units(first.frozen_head, own.metric),
                *(
                    _figure(by_place.get((name, method))) if is_trained(name, method) else "none"
                    for method in METHODS
                ),
                *(_peer(peers.get((name, method)), own.metric) for method in PEER_RECIPES),
            ]
        )
    return _table(rows)


def _cost_table(cells: Sequence[Cell]) -> list[str]:
    rows = [["method", "share of `minilm`", "share of `smollm2`", "seconds, set by set"]]
    for method in METHODS:
        own = [cell for cell in cells if cell.method == method]
        if not own:
            continue
        shares = {SETS[cell.set].base: cell.share for cell in own}
        seconds = ", ".join(f"{cell.set.partition('_')[0]} {cell.seconds:.0f}" for cell in own)
        both = [f"{shares[b]:.3%}" if b in shares else "-" for b in ("minilm", "smollm2")]
        rows.append([f"`{method}`", *both, seconds])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others)]


def _missed(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    missed = [v for v in verdicts if not v["met"]]
    if not missed:
        return ["None."]
    rows = ["| promise | set | method | lead | interval | seeds | counts |"]
    rows.append("|---|---|---|---|---|---|---|")
    rows += [
        f"| {v['claim']} | `{v['set']}`{'' if v['feasible'] else ' (hard on purpose)'} "
        f"| {v['method']} | {v['lead']:+.4f} | ± {v['interval']:.4f} | {v['seeds']} "
        f"| {'yes' if v['counts'] else 'no'} |"
        for v in missed
    ]
    return rows


def _figure(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    value = in_units(cell.mean, cell.metric)
    if cell.spread is None:
        return f"{value} (1)"
    return f"{value} ± {in_units(cell.spread, cell.metric)} ({len(cell.seeds)})"


def _peer(found: tuple[float, int] | None, metric: str) -> str:
    return "-" if found is None else f"{in_units(found[0], metric)} ({found[1]})"


if __name__ == "__main__":
    main()
