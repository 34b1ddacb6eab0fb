"""Plots of the serving benchmarks for ``docs/serving.md``, from their JSON.

``python -m benchmarks serving-plots``
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.record import RESULTS
from benchmarks.serving.adapter_counts import BASES

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tunery"  # the same figures give the same file

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def main() -> None:
    """Draw what there are results for."""
    FIGURES.mkdir(exist_ok=True)
    for base in BASES:
        paths = sorted(RESULTS.glob(f"serving-adapter-counts-{base}*.json"))
        if paths:
            _draw_counts([json.loads(path.read_text())["summary"] for path in paths], base)
    for path in sorted(RESULTS.glob("serving-soak*.json")):
        _draw_memory(json.loads(path.read_text())["runs"], path.stem)


def _draw_counts(parts: Sequence[dict[str, Any]], base: str) -> None:
    """Relative to the plain base of the same run: parts may have run at different hours."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    lines: dict[str, dict[int, float]] = {}
    for summary in parts:
        for case, share in (summary["relative_to_plain_base"] or {}).items():
            count, _, how = case.partition(" ")
            lines.setdefault(how, {})[int(count)] = share
    for how, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=how)
    axes.set_xscale("symlog")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("distinct adapters asked (0: the plain base)")
    axes.set_ylabel("answers per processor second,\nthe plain base = 1")
    axes.set_title(base)
    axes.legend()
    figure.tight_layout()
    figure.savefig(FIGURES / f"serving-adapter-counts-{base}.svg")


def _draw_memory(curve: list[dict[str, float]], name: str) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for process in [key for key in curve[0] if key != "seconds"]:
        own = [(sample["seconds"], sample.get(process, 0.0)) for sample in curve]
        axes.plot(*zip(*own, strict=True), label=process)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("memory (RSS), MB")
    axes.legend()
    figure.tight_layout()
    figure.savefig(FIGURES / f"{name}-memory.svg")


if __name__ == "__main__":
    main()
