"""Quality of smaller bases against bytes and latency: ``python -m benchmarks compression-plots``.

Drawn from what the other benchmarks of this folder have left: a point for every derived base of
``minilm`` that was tuned with LoRA, beside the untouched one of the same seeds. Bytes and seconds
are shares of the untouched base's, the latter of forwards of 32 rows of 32 tokens. Writes
``docs/figures/compression-SET.svg``.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.quality.grid import SETS
from benchmarks.record import RESULTS

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tunery"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
SHAPE = "32x32"
METHOD = "lora"
UNTOUCHED = "untouched"
_CROWDED = 0.2
"""Labels of points so near to the untouched base's go to the left."""


@dataclass(frozen=True)
class Point:
    """A base after tuning.

    Attributes:
        name: Short name of what was done to it.
        quality: Mean over seeds.
        seeds: How many.
        bytes: Share of the untouched base's.
        time: Likewise of a forward; None where it was not measured.
    """

    name: str
    quality: float
    seeds: int
    bytes: float
    time: float | None


def collect(chosen: str) -> list[Point]:
    """What was measured on one set.

    Args:
        chosen: Name of the data set.

    Returns:
        The untouched base first; seeds that it was not tuned with are left out everywhere.
    """
    pruned = _read("pruning-latency")
    whole = pruned["summary"][UNTOUCHED]["bytes"]
    bytes_of = {name: own["bytes"] for name, own in _variants(pruned).items()}
    for run in _read("quantization-quality")["runs"]:
        bytes_of.setdefault(run["scheme"], run["bytes"])
    qualities, times = _qualities(chosen), _times()
    known = qualities[UNTOUCHED].keys()
    points = []
    for name, by_seed in qualities.items():
        fair = [quality for seed, quality in by_seed.items() if seed in known]
        if fair:
            share, mean = bytes_of[name] / whole, statistics.mean(fair)
            points.append(Point(name, mean, len(fair), share, times.get(name)))
    return points


def main() -> None:
    """Draw every set with results."""
    FIGURES.mkdir(exist_ok=True)
    for chosen in sorted({run["set"] for run in _read("quantization-quality")["runs"]}):
        points = collect(chosen)
        for point in points:
            print(chosen, point)
        _draw(chosen, points)


def _draw(chosen: str, points: list[Point]) -> None:
    figure, (by_bytes, by_time) = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for point in points:
        for axes, where in ((by_bytes, point.bytes), (by_time, point.time)):
            if where is not None:
                axes.plot(where, point.quality, "o", color=f"C{points.index(point)}")
                axes.annotate(
                    f"{point.name} ({point.seeds})",
                    (where, point.quality),
                    textcoords="offset points",
                    # The untouched base stands at the edge, its neighbours close to it.
                    xytext=(-5, 5) if point.name == UNTOUCHED else (-2, -12),
                    ha="right" if where > 1 - _CROWDED else "left",
                    fontsize=7,
                )
    by_bytes.set_xlabel("bytes of the untouched base's")
    by_time.set_xlabel(f"time of its forward, {SHAPE.replace('x', ' x ')} tokens")
    by_bytes.set_ylabel(SETS[chosen].metric)
    figure.suptitle(f"{chosen}: minilm, LoRA tuned on each base (seeds)", fontsize=9)
    for axes in (by_bytes, by_time):
        axes.margins(0.15)
    figure.tight_layout()
    figure.savefig(FIGURES / f"compression-{chosen}.svg", metadata={"Date": None})


def _qualities(chosen: str) -> dict[str, dict[int, float]]:
    """By base and seed, what came out of tuning."""
    metric = SETS[chosen].metric
    found: dict[str, dict[int, float]] = {UNTOUCHED: {}}
    for run in _read("quantization-quality")["runs"]:
        if run["set"] == chosen:
            name = UNTOUCHED if run["scheme"] == "none" else run["scheme"]
            found.setdefault(name, {})[run["seed"]] = run["after"]
    for line in [*_lines("quality"), *_lines("pruning-recovery")]:
        if (line["set"], line["method"]) == (chosen, METHOD):
            name = line.get("pruning", UNTOUCHED)
            found.setdefault(name, {})[line["seed"]] = line["test"]["after"][metric]
    return found


def _times() -> dict[str, float]:
    """By base, the share of the untouched base's time that a forward takes."""
    found = {
        name: 1 / own["times_faster"][SHAPE]
        for name, own in _variants(_read("pruning-latency")).items()
    }
    for run in _read("quantization-latency")["runs"]:
        if f"{run['rows']}x{run['tokens']}" == SHAPE and run["scheme"] != "none":
            found[run["scheme"]] = 1 / run["times_faster"]
    return found


def _variants(latency: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: own for name, own in latency["summary"].items() if isinstance(own, dict)}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _lines(name: str) -> list[dict[str, Any]]:
    text = (RESULTS / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    main()
