"""Plots of the comparison as SVG: scores by set, and score against size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.quality.grid import METHODS, SETS
from benchmarks.quality.summary import Cell, lead

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tunery"  # the same figures give the same file
_COLUMNS = 4
_SIZE_INCHES = (3.2, 2.6)
Peers = Mapping[tuple[str, str], tuple[float, int]]


def draw(cells: Sequence[Cell], peers: Peers, folder: Path) -> None:
    """Write both figures.

    Args:
        cells: What was measured.
        peers: Means of the peer by set and method.
        folder: Where the files go; made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if cells:
        _draw_scores(cells, peers, folder / "quality-scores.svg")
        _draw_sizes(cells, folder / "quality-sizes.svg")


def _draw_scores(cells: Sequence[Cell], peers: Peers, path: Path) -> None:
    """One panel a set: every method, the untuned base, the floor, the peer."""
    names = [name for name in SETS if any(cell.set == name for cell in cells)]
    rows = -(-len(names) // _COLUMNS)
    figure, axes = pyplot.subplots(
        rows,
        _COLUMNS,
        figsize=(_SIZE_INCHES[0] * _COLUMNS, _SIZE_INCHES[1] * rows),
        squeeze=False,
        layout="constrained",
    )
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(axes.flat, names, strict=False):
        own = [cell for cell in cells if cell.set == name]
        places = range(len(own))
        errors = [cell.spread or 0.0 for cell in own]
        panel.errorbar(places, [cell.mean for cell in own], yerr=errors, fmt="o", label="ours")
        panel.axhline(own[0].before, color="grey", linestyle=":", label="untuned")
        floor = SETS[name].floor
        if floor is not None:
            panel.axhline(floor, color="black", linestyle="--", label="floor")
        theirs = [
            (i, peers[name, c.method][0]) for i, c in enumerate(own) if (name, c.method) in peers
        ]
        if theirs:
            panel.plot(*zip(*theirs, strict=True), "x", color="tab:red", label="PEFT")
        panel.set_xticks(list(places), [cell.method for cell in own], rotation=60, fontsize=7)
        panel.set_title(f"{name}: {own[0].metric}", fontsize=8)
    axes.flat[0].legend(fontsize=6)
    _save(figure, path)


def _draw_sizes(cells: Sequence[Cell], path: Path) -> None:
    """Mean lead over the untuned base, as a share of full fine-tuning's, against size."""
    full = {
        cell.set: lead(cell.mean, cell.before, cell.metric)
        for cell in cells
        if cell.method == "full"
    }
    figure, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for method in METHODS:
        own = [c for c in cells if c.method == method and full.get(c.set, 0) > 0 and c.share > 0]
        if own:
            shares = [lead(c.mean, c.before, c.metric) / full[c.set] for c in own]
            sizes = [100 * c.share for c in own]
            panel.plot(sizes, shares, "o", markersize=4, label=method)
    if not panel.lines:  # without full fine-tuning there is nothing to measure by
        pyplot.close(figure)
        return
    panel.axhline(1.0, color="grey", linestyle=":")
    panel.set_xscale("log")
    panel.set_xlabel("numbers that learn beside the head, % of the base")
    panel.set_ylabel("gain over the untuned base\nfull fine-tuning = 1")
    panel.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
