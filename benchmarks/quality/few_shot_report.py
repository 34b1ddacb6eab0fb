"""``python -m benchmarks few-shot-report``: table and plot of the runs with few rows.

Writes the part of ``docs/quality.md`` between its marks, and ``docs/figures/quality-few-shot.svg``.
Runs of earlier recipes are left out.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.quality.few_shot import COUNTS, JOURNAL, key_of
from benchmarks.quality.grid import SETS
from benchmarks.quality.jobs import QualityJob
from benchmarks.quality.journal import Journal
from benchmarks.quality.peer_jobs import PeerJob

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tunery"  # the same figures give the same file
BEGIN, END = "<!-- few rows: made by few-shot-report -->", "<!-- end of few rows -->"
Curves = dict[str, dict[int, list[float]]]
"""Scores of each seed by rows, by what was run."""


def main() -> None:
    """Read, sum up, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    lines = [line for line in Journal(JOURNAL) if _is_current(line)]
    curves = {
        name: curves_of([line for line in lines if line["set"] == name])
        for name in SETS
        if any(line["set"] == name for line in lines)
    }
    page = asked.docs / "quality.md"
    before, _, rest = page.read_text().partition(BEGIN)
    made = "\n".join([BEGIN, "", *_table(curves), "", END])
    page.write_text(before + made + rest.partition(END)[2])
    _draw(curves, asked.docs / "figures" / "quality-few-shot.svg")


def curves_of(lines: Sequence[Mapping[str, Any]]) -> Curves:
    """What a set's runs say.

    Args:
        lines: Runs of one set.

    Returns:
        Scores of ``untuned``, ``frozen head``, each method of ours and of the peer.
    """
    found: Curves = {"untuned": {}, "frozen head": {}}

    def note(what: str, rows: int, value: float) -> None:
        found.setdefault(what, {}).setdefault(rows, []).append(value)

    for line in lines:
        metric, rows, test = line["metric"], line["train_rows"], line["test"]
        if line["who"] == "peer":
            note(f"PEFT {line['method']}", rows, test["after"][metric])
            continue
        note(line["method"], rows, test["after"][metric])
        if line["method"] == "lora":  # what does not depend on the method is counted once
            note("untuned", rows, test["before"][metric])
            if test.get("frozen_head"):
                note("frozen head", rows, test["frozen_head"][metric])
    return {what: own for what, own in found.items() if own}


def _is_current(line: Mapping[str, Any]) -> bool:
    name, method, seed, rows = line["set"], line["method"], line["seed"], line["train_rows"]
    job = (
        PeerJob(name, method, seed)
        if line["who"] == "peer"
        else QualityJob(name, method, seed, train_rows=rows)
    )
    return bool(key_of(line["who"], rows, job) == line["key"])


def _table(curves: Mapping[str, Curves]) -> list[str]:
    rows = [["set", "what", *(f"{count} rows" for count in COUNTS)], ["---"] * (2 + len(COUNTS))]
    for name, own in curves.items():
        for what, points in own.items():
            figures = [_figure(points.get(count), SETS[name].metric) for count in COUNTS]
            rows.append([f"`{name}`, {SETS[name].metric}", what, *figures])
    return [f"| {' | '.join(row)} |" for row in rows]


def _figure(values: Sequence[float] | None, metric: str) -> str:
    if not values:
        return "-"
    scale, digits = {"loss": (1, 3), "bleu": (1, 1)}.get(metric, (100, 1))
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f} ({len(values)})"


def _draw(curves: Mapping[str, Curves], path: Path) -> None:
    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(3.4 * len(curves), 3), squeeze=False, layout="constrained"
    )
    for panel, (name, own) in zip(axes.flat, curves.items(), strict=True):
        for what, points in own.items():
            counts = sorted(points)
            means = [statistics.mean(points[count]) for count in counts]
            dashed = what in ("untuned", "frozen head")
            panel.plot(counts, means, "--" if dashed else "-", marker="o", markersize=3, label=what)
        panel.set_xscale("log", base=2)
        panel.set_xticks(COUNTS, [str(count) for count in COUNTS])
        panel.set_xlabel("training rows")
        panel.set_title(f"{name}: {SETS[name].metric}", fontsize=8)
    axes.flat[0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
