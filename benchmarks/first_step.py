"""From POST /jobs to the first training step, on a cold and on a warm worker.

``python -m benchmarks.first_step --models-dir data/models`` starts the whole service and sends jobs
one after another: the first pays for loading the base; then the same data with other seeds; then
data that the worker has not seen. Times are the service's own: ``created_at`` to ``first_step_at``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.record import write_result
from cli.programs import free_ports

BAR_SECONDS = 1.0
DATA = Path(__file__).parents[1] / "examples" / "data"
START_SECONDS = 300.0
JOB_SECONDS = 600.0
_TERMINAL = {"succeeded", "failed", "cancelled"}


def wait(seconds: float) -> None:
    """Pause without holding anything."""
    threading.Event().wait(seconds)


class Service:
    """A running ``tunery serve`` in a folder of its own."""

    def __init__(self, folder: Path, models_dir: Path) -> None:
        port, inference_port = free_ports(2)
        self.output = folder / "serve.out"
        # Everything else comes from the command line, as a user would start it.
        argv = ["env", 'TUNERY_SERVED_BASE_MODELS=["minilm"]', sys.executable, "-m", "cli", "serve"]
        argv += ["--data-dir", str(folder)]
        argv += ["--models-dir", str(models_dir), "--port", str(port)]
        argv += ["--inference-port", str(inference_port)]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(argv, stdout=stream, stderr=stream)
        deadline = time.monotonic() + START_SECONDS
        while "Ready: " not in self.output.read_text():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(self.output.read_text())
            wait(0.1)
        key = (folder / "api-key").read_text().strip()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=120,
        )

    def stop(self) -> None:
        """End everything."""
        self.http.close()
        self.process.terminate()
        self.process.wait(60)


def upload(service: Service, name: str, rows: list[dict[str, Any]]) -> str:
    """A data set made of the rows, the last 60 being validation and test.

    Returns:
        Its id.

    Raises:
        SystemExit: The service refused it.
    """
    body = {
        "file": rows[:-60],
        "validation_file": rows[-60:-30],
        "test_file": rows[-30:],
    }
    files = {
        field: (f"{field}.jsonl", "".join(json.dumps(row) + "\n" for row in own))
        for field, own in body.items()
    }
    answer = service.http.post("/datasets", files=files, data={"name": name})
    if answer.is_error:
        raise SystemExit(answer.text)
    dataset: dict[str, Any] = answer.json()
    while dataset["status"] == "validating":
        wait(0.2)
        dataset = service.http.get(f"/datasets/{dataset['id']}").json()
    return str(dataset["id"])


def run_job(service: Service, dataset_id: str, *, seed: int) -> dict[str, Any]:
    """Send a job of a few steps and wait for its end.

    Returns:
        The job as it ended.

    Raises:
        SystemExit: It did not succeed.
    """
    body = {
        "dataset_id": dataset_id,
        "base_model": "minilm",
        "training": {"seed": seed, "max_steps": 3},
    }
    answer = service.http.post("/jobs", json=body)
    if answer.is_error:
        raise SystemExit(answer.text)
    job: dict[str, Any] = answer.json()
    deadline = time.monotonic() + JOB_SECONDS
    while job["status"] not in _TERMINAL:
        if time.monotonic() > deadline:
            raise SystemExit(f"the job did not end: {job}")
        wait(0.1)
        job = service.http.get(f"/jobs/{job['id']}").json()
    if job["status"] != "succeeded":
        raise SystemExit(json.dumps(job, indent=1))
    return job


def seconds_to_first_step(job: dict[str, Any]) -> float:
    """Seconds from the job's creation to its first optimizer step."""
    created, first = (datetime.fromisoformat(job[k]) for k in ("created_at", "first_step_at"))
    return (first - created).total_seconds()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-rows", type=int, nargs="+", default=[100, 500])
    asked = parser.parse_args()
    lines = (DATA / "banking77_intent" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    runs: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        service = Service(Path(folder), asked.models_dir.resolve())
        try:
            known = upload(service, "known", binary(rows, start=0, count=1060))
            for seed in range(asked.repeats + 1):
                job = run_job(service, known, seed=seed)
                kind = "first job" if seed == 0 else "same base, same data"
                runs.append({"kind": kind, "seconds": seconds_to_first_step(job)})
                print(runs[-1], flush=True)
            for count in asked.new_rows:
                for repeat in range(asked.repeats):
                    own = binary(rows, start=1060 + 60 * repeat, count=count + 60)
                    job = run_job(service, upload(service, f"new-{count}-{repeat}", own), seed=0)
                    kind = f"same base, {count} new rows"
                    runs.append({"kind": kind, "seconds": seconds_to_first_step(job)})
                    print(runs[-1], flush=True)
        finally:
            service.stop()
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    medians = {
        kind: round(statistics.median(r["seconds"] for r in runs if r["kind"] == kind), 3)
        for kind in kinds
    }
    summary = {
        "median_seconds": medians,
        "bar_seconds": BAR_SECONDS,
        "met": {kind: seconds <= BAR_SECONDS for kind, seconds in medians.items()},
    }
    write_result("first-step", summary=summary, runs=runs)


def binary(rows: list[dict[str, Any]], *, start: int, count: int) -> list[dict[str, Any]]:
    """Rows of two classes, so that any stretch of the file has both."""
    own = rows[start : start + count]
    return [
        {"text": row["text"], "label": "card" if "card" in row["text"] else "other"} for row in own
    ]


if __name__ == "__main__":
    main()
