"""Results of benchmarks: JSON with the versions and the machine that they hold for."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "peft", "numpy")


def write_result(name: str, *, summary: dict[str, Any], runs: list[Any]) -> Path:
    """Print the summary and keep everything.

    Args:
        name: File name without ending.
        summary: What is quoted.
        runs: What it was made of.

    Returns:
        The file.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    found = {
        **describe_run(),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        },
        "summary": summary,
        "runs": runs,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return path


def describe_run() -> dict[str, Any]:
    """When, of which code and with which packages something was measured.

    Returns:
        JSON values; ``device`` is the accelerator that this process may compute on, else ``cpu``.
    """
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {package: version(package) for package in _PACKAGES},
    }


def _commit() -> str:
    """The commit of the code, or ``unknown`` for a copy without its history."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
