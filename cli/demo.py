"""`tunery demo`: from nothing to two tuned, answering adapters, on data of the repository.

Starts the service on free ports, asks it over HTTP like any client would, and stops it. What it
made stays in its data directory, so that a second run goes on where an interrupted one stopped.
"""

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from cli.client import Client, RequestFailedError
from cli.connection import read_key
from cli.datasets import upload_files
from cli.output import as_text, stdout
from cli.predict import short_answer
from cli.programs import free_ports
from cli.progress import FINISHED, as_clock, follow_job, wait_for
from cli.report import show_test
from cli.serve import BASE_MODEL, CANNOT_SERVE, READY
from cli.supervisor import LEASH

DATA = Path(__file__).parent.parent / "examples" / "data"
START_SECONDS = 300.0
STOP_SECONDS = 45.0
SHOWN_ROWS = 4
# Names the run of which jobs in the data directory are, until it has come to its end.
RUN_FILE = "demo-run.json"
# Text generation on a laptop's processor: enough steps to see it change, few enough to wait for.
TEXT_ROWS = {"train": 192, "validation": 25, "test": 24}
TEXT_TRAINING = {"epochs": 1}
# As few as show that everything works here.
QUICK_TEXT_ROWS = {"train": 48, "validation": 4, "test": 4}
QUICK_TRAINING = {"max_steps": 5}


class DemoFailedError(Exception):
    """The demo cannot go on; the message says why."""


def run_demo(*, data_dir: Path, models_dir: Path, quick: bool, seed: int) -> int:
    """Runs the demo from start to end.

    Args:
        data_dir: Where it keeps its data.
        models_dir: Where the base models are.
        quick: A few steps, and few texts: whether it works, not what it can learn.
        seed: Seed of both jobs.

    Returns:
        Exit code: 0 when both adapters were made and answered.
    """
    started = time.monotonic()
    training = {"seed": seed} | (QUICK_TRAINING if quick else {})
    text_rows = QUICK_TEXT_ROWS if quick else TEXT_ROWS
    try:
        with _service(data_dir, models_dir) as client:
            run = _open_run(data_dir, training)
            stdout.rule("Intent classification: banking77_intent, minilm, LoRA, default settings")
            _classify(client, data_dir, training, run=run)
            stdout.rule("Text generation: e2e_nlg, smollm2, LoRA, a short run")
            _generate(client, data_dir, training, rows=text_rows, run=run)
            (data_dir / RUN_FILE).unlink(missing_ok=True)
    except KeyboardInterrupt:
        stdout.print("\nInterrupted. Everything is stopped; the same command goes on from here.")
        return 130
    except (DemoFailedError, RequestFailedError) as error:
        stdout.print(f"[bold red]The demo failed:[/bold red] {as_text(str(error))}")
        return 1
    took = as_clock(time.monotonic() - started)
    stdout.print(f"\nDone in {took}. `make serve` leaves the service running, with /docs open.")
    return 0


@contextmanager
def _service(data_dir: Path, models_dir: Path) -> Iterator[Client]:
    """Starts the service on free ports and stops it in the end, also after Ctrl-C.

    Args:
        data_dir: Where it keeps its data.
        models_dir: Where the base models are.

    Yields:
        A client of the service, with its first key.

    Raises:
        DemoFailedError: There is no data to train on, or the service did not start.
    """
    if not DATA.is_dir():
        raise DemoFailedError(f"{DATA} is missing; run the demo in a clone of the repository")
    data_dir = data_dir.absolute()
    log = data_dir / "logs" / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    port, inference_port = free_ports(2)
    argv = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid())]
    argv += [sys.executable, "-m", "cli", "serve", "--data-dir", str(data_dir)]
    argv += ["--models-dir", str(models_dir.absolute()), "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--inference-port", str(inference_port)]
    stdout.print(f"Starting the service at http://127.0.0.1:{port}, logs in {log.parent}")
    with log.open("w", encoding="utf-8") as output:
        # Its own session: Ctrl-C reaches the demo alone, which then stops the service in order.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        started = time.monotonic()
        _wait_until_ready(process, log)
        stdout.print(f"Ready after {time.monotonic() - started:.1f} s")
        with Client(f"http://127.0.0.1:{port}", read_key(data_dir)) as client:
            yield client
    finally:
        stdout.print("Stopping the service")
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, previous)


def _open_run(data_dir: Path, training: dict[str, Any]) -> str:
    """Returns the mark of this run: that of an interrupted one with the same options, or a new one.

    Args:
        data_dir: Where it is kept.
        training: What was asked of both trainings.
    """
    path = data_dir / RUN_FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    if kept.get("training") != training:
        kept = {"run": secrets.token_hex(8), "training": training}
        path.write_text(json.dumps(kept), encoding="utf-8")
    return str(kept["run"])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    told = 0

    def look() -> dict[str, Any]:
        nonlocal told
        said = log.read_text(encoding="utf-8")
        news = [line for line in said.splitlines() if f"| {BASE_MODEL}" in line]
        for line in news[told:]:
            stdout.print(f"  {as_text(line.partition('| ')[2])}", highlight=False)
        told = len(news)
        ended = process.poll() is not None or time.monotonic() > until
        if ended or CANNOT_SERVE in said:
            raise DemoFailedError(f"the service did not start; it said:\n{said}")
        return {"ready": READY in said}

    wait_for(look, until=lambda seen: bool(seen["ready"]), every_seconds=0.1)


def _classify(client: Client, data_dir: Path, training: dict[str, Any], *, run: str) -> None:
    files = _take(data_dir, "banking77_intent", {})
    body = {"base_model": "minilm", "adapter_name": "banking-intents", "training": training}
    job = _train(client, files, body, task="text-classification", run=run)
    show_test(job)
    records = _read_records(files["test_file"], SHOWN_ROWS)
    shown = [(row["text"], row["text"], row["label"]) for row in records]
    # With the names of the labels the plain base can be asked too: for the nearest in meaning.
    labels = client.get(f"/adapters/{job['adapter_id']}")["labels"]
    _show_side_by_side(client, job, shown, options={"labels": labels})


def _generate(
    client: Client, data_dir: Path, training: dict[str, Any], *, rows: dict[str, int], run: str
) -> None:
    files = _take(data_dir, "e2e_nlg", rows)
    body: dict[str, Any] = {"base_model": "smollm2", "adapter_name": "restaurant-texts"}
    body["training"] = TEXT_TRAINING | training
    job = _train(client, files, body, task="text-generation", run=run)
    show_test(job)
    records = _read_records(files["test_file"], SHOWN_ROWS)
    shown = [({"prompt": row["prompt"]}, row["prompt"], row["completion"]) for row in records]
    _show_side_by_side(client, job, shown, options={"max_new_tokens": 64, "temperature": 0})


def _train(
    client: Client, files: dict[str, Path], body: dict[str, Any], *, task: str, run: str
) -> Any:
    """Uploads, trains and waits; what the run began before it was interrupted is not begun again.

    Args:
        client: Of the service.
        files: The data set.
        body: The job, without its data set.
        task: Task of the data set.
        run: Mark of the jobs of this run.

    Returns:
        The job that succeeded.

    Raises:
        DemoFailedError: The data set is invalid, or the job did not succeed.
    """
    dataset = upload_files(client, files, {"name": body["adapter_name"], "task": task})
    if dataset["status"] != "ready":
        raise DemoFailedError(f"the data set is {dataset['status']}: {dataset.get('report')}")
    stdout.print(f"Data set {dataset['id']}: {dataset['rows']} rows")
    job = _begun(client, body["adapter_name"], run=run)
    if job is None:
        marks = {"made_by": "demo", "run": run}
        job = client.post("/jobs", {**body, "dataset_id": dataset["id"], "metadata": marks})
        stdout.print(f"Job {job['id']} on {body['base_model']}")
    elif job["status"] in FINISHED:
        stdout.print(f"Job {job['id']} had succeeded before the interruption")
    else:
        stdout.print(f"Job {job['id']} was left unfinished and goes on")
    started = time.monotonic()
    job = follow_job(client, job["id"], console=stdout)
    if job["status"] != "succeeded":
        raise DemoFailedError(f"job {job['id']} {job['status']}: {job.get('error')}")
    trained, base = job["trainable_parameters"], job["base_parameters"]
    took = as_clock(time.monotonic() - started)
    stdout.print(f"Trained {trained:,} numbers beside {base:,} frozen ones in {took}")
    return job


def _begun(client: Client, adapter_name: str, *, run: str) -> dict[str, Any] | None:
    """Returns the newest job of a run for an adapter that has succeeded or still may."""
    for job in client.pages("/jobs", limit=20, **{"metadata[run]": run}):
        if job["adapter_name"] == adapter_name and job["status"] not in ("failed", "cancelled"):
            return job
    return None


def _show_side_by_side(
    client: Client,
    job: dict[str, Any],
    shown: list[tuple[Any, str, str]],
    *,
    options: dict[str, Any],
) -> None:
    """Asks base and adapter for the same rows in one call and prints the answers and receipts."""
    adapter, base = job["adapter_id"], job["base_model"]
    asked = []
    for row, _, _ in shown:
        asked += [{"adapter_id": who, "base_model": base, "input": row} for who in (None, adapter)]
    body = {"base_model": base, "task": job["task"], "inputs": asked, "options": options}
    answer = client.post("/predict", body)
    table = Table("asked", "expected", "base", "adapter", show_lines=True)
    outputs = [short_answer(output) for output in answer["outputs"]]
    for (_, text, expected), plain, tuned in zip(shown, outputs[::2], outputs[1::2], strict=True):
        table.add_row(*(as_text(cell) for cell in (text, expected, plain, tuned)))
    stdout.print(table)
    receipt = answer["receipts"][1]
    stdout.print(
        f"Receipt: adapter {receipt['adapter_id']} {receipt['adapter_digest']}\n"
        f"         on base {receipt['base_model']} {receipt['base_fingerprint']}",
        highlight=False,
    )


def _take(data_dir: Path, name: str, sizes: dict[str, int]) -> dict[str, Path]:
    """Returns the files of a data set, the first rows of a split where a size is given."""
    files = {}
    for split in ("train", "validation", "test"):
        path = DATA / name / f"{split}.jsonl"
        if split in sizes:
            cut = data_dir / "rows" / f"{name}-{split}-{sizes[split]}.jsonl"
            cut.parent.mkdir(parents=True, exist_ok=True)
            with path.open(encoding="utf-8") as lines:
                cut.write_text("".join(itertools.islice(lines, sizes[split])), encoding="utf-8")
            path = cut
        files["file" if split == "train" else f"{split}_file"] = path
    return files


def _read_records(path: Path, count: int) -> list[dict[str, Any]]:
    """Reads so many records, from all over a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // count][:count]]
