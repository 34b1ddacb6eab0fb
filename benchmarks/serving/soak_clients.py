"""What the clients of a soak do, one act after another: ask, stream, hang up, move, delete, err."""

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.serving.oracle import Known, Oracle
from benchmarks.serving.stack import Stack, pause

Row = tuple[Known, str, Mapping[str, Any]]
"""Whom a row asks, its text, its options."""

ALIAS = "soak-alias"
ROWS_OF_A_CALL = 4
_SLOW_READ_BYTES = 2048
_SLOW_PAUSE_SECONDS = 0.02
_SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
_LOST = frozenset({"inference_unavailable", "shutting_down"})
"""What a stream may end with when its replica was killed under it."""


@dataclass
class Findings:
    """What all clients have seen; changed under ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    acts: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    provoked: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    alias_digests: set[tuple[int, str]] = field(default_factory=set)
    replica_is_down: bool = False

    def provoke(self, code: str) -> None:
        """Note an error that was asked for."""
        with self.lock:
            self.provoked[code] += 1

    def wrong(self, kind: list[str], what: str) -> None:
        """Note something that must not be."""
        with self.lock:
            kind.append(what)


@dataclass
class World:
    """What the clients work on.

    Attributes:
        stack: The service.
        oracle: Knows every answer.
        readers: Adapters of an encoder, and that encoder itself.
        writers: Adapters of a causal base, and that base itself.
        versions: Adapters that the alias is moved between.
        broken: An adapter whose stored bytes are damaged.
        texts: Inputs.
        new_tokens: Longest text that is asked for.
        publish: Publishes one more adapter.
        findings: What was seen.
        stopping: Set when the time is over.
    """

    stack: Stack
    oracle: Oracle
    readers: Sequence[Known]
    writers: Sequence[Known]
    versions: Sequence[Known]
    broken: Known
    texts: Sequence[str]
    new_tokens: int
    publish: Callable[[int], Known]
    findings: Findings = field(default_factory=Findings)
    stopping: threading.Event = field(default_factory=threading.Event)


class SoakClient:
    """One client with its own connection and its own dice.

    Args:
        world: What it works on.
        seed: Of its dice.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._dice = random.Random(seed)
        self._http = world.stack.client()
        self._made = seed * 1_000_000

    def run(self) -> None:
        """Act until the time is over."""
        acts: Mapping[Callable[[], None], int] = {
            self._ask_mixed: 30,
            self._embed: 6,
            self._write: 12,
            self._stream: 10,
            self._read_slowly: 2,
            self._hang_up: 6,
            self._ask_alias: 10,
            self._move_alias: 3,
            self._delete_while_asked: 2,
            self._err: 8,
        }
        names, weights = list(acts), list(acts.values())
        while not self._world.stopping.is_set():
            act = self._dice.choices(names, weights)[0]
            with self._world.findings.lock:
                self._world.findings.acts[act.__name__.strip("_")] += 1
            try:
                act()
            except httpx.TransportError as error:
                self._fault(f"{act.__name__}: {error!r}")
            except Exception as error:  # noqa: BLE001 - edge of a thread: a fault is a finding
                self._fault(f"{act.__name__} failed here: {error!r}")
        self._http.close()

    # ---- acts ----

    def _ask_mixed(self) -> None:
        """A few rows of any adapters and plain bases in one call."""
        chosen = self._dice.choices(
            [*self._world.readers, *self._world.writers[:2]], k=ROWS_OF_A_CALL
        )
        rows = [(known, self._text(), self._options(known)) for known in chosen]
        self._check_rows(rows, None, self._predict(rows))

    def _embed(self) -> None:
        rows: list[Row] = [
            (known, self._text(), {}) for known in self._dice.choices(self._world.readers, k=3)
        ]
        self._check_rows(rows, "embedding", self._predict(rows, task="embedding"))

    def _write(self) -> None:
        known = self._dice.choice(self._world.writers)
        rows = [(known, self._text(), self._options(known, sampled=True))]
        self._check_rows(rows, None, self._predict(rows))

    def _stream(self) -> None:
        known, text = self._dice.choice(self._world.writers), self._text()
        options = self._options(known, sampled=True)
        with self._streaming(self._http, known, text, options) as events:
            self._check_stream(known, text, options, events)

    def _read_slowly(self) -> None:
        """A client with a tiny buffer that reads a long answer in small bites."""
        known, text = self._dice.choice(self._world.writers), self._text()
        options = self._options(known) | {
            "n": 4,
            "temperature": 1.0,
            "seed": self._dice.randrange(3),
            "logprobs": 20,
        }
        transport = httpx.HTTPTransport(socket_options=_SMALL_BUFFER)
        headers = dict(self._http.headers)
        with (
            httpx.Client(
                base_url=self._world.stack.url, headers=headers, transport=transport, timeout=120
            ) as http,
            self._streaming(http, known, text, options, slowly=True) as events,
        ):
            self._check_stream(known, text, options, events)

    def _hang_up(self) -> None:
        """Go away before the answer, from a stream or from a call."""
        known, text = self._dice.choice(self._world.writers), self._text()
        if self._dice.random() < 0.5:
            with self._streaming(self._http, known, text, self._options(known)) as events:
                next(events, None)
        else:
            rows = [(known, text, self._options(known))]
            try:
                self._predict(rows, timeout=self._dice.uniform(0.001, 0.05))
            except httpx.TimeoutException:
                self._world.findings.provoke("hung up")

    def _ask_alias(self) -> None:
        text = self._text()
        answer = self._post({"adapter_id": ALIAS, "inputs": [text]})
        if answer is None:
            return
        receipt = answer["receipts"][0]
        by_digest = {known.digest: known for known in self._world.versions}
        known = by_digest.get(receipt["adapter_digest"])
        if known is None:
            self._disagree(f"the alias was answered by {receipt}")
            return
        with self._world.findings.lock:
            self._world.findings.alias_digests.add(
                (receipt["alias_revision"], receipt["adapter_digest"])
            )
        self._check(known, text, answer["outputs"][0], receipt, None, {})

    def _move_alias(self) -> None:
        if self._dice.random() < 0.25:
            response = self._http.post(f"/aliases/{ALIAS}:rollback")
            fine = response.status_code in {200, 409}  # 409: nothing to go back to
        else:
            known = self._dice.choice(self._world.versions)
            response = self._http.put(f"/aliases/{ALIAS}", json={"adapter_id": known.reference})
            fine = response.status_code in {200, 201}
        if not fine:
            self._fault(f"moving the alias: {response.status_code} {response.text}")

    def _delete_while_asked(self) -> None:
        """A new adapter is asked and deleted at the same time: an answer is right or an error."""
        self._made += 1
        known = self._world.publish(self._made)
        row: list[Row] = [(known, self._text(), {})]
        self._check_rows(row, None, self._predict(row))
        asking = threading.Thread(target=self._ask_what_goes, args=(known,))
        asking.start()
        gone = self._http.delete(f"/adapters/{known.reference}")
        for _ in range(100):
            if gone.status_code != 409:
                break
            self._world.findings.provoke("adapter_in_use")
            pause(0.02)
            gone = self._http.delete(f"/adapters/{known.reference}")
        asking.join()
        if gone.status_code != 200:
            self._fault(f"deleting {known.shown}: {gone.status_code} {gone.text}")

    def _ask_what_goes(self, known: Known) -> None:
        with self._world.stack.client() as http:
            for text in self._world.texts[:3]:
                body = {"adapter_id": known.reference, "inputs": [text]}
                response = http.post("/predict", json=body)
                if response.status_code == 404:
                    self._world.findings.provoke(response.json()["error"]["code"])
                elif response.status_code == 200:
                    found = response.json()
                    self._check(known, text, found["outputs"][0], found["receipts"][0], None, {})
                else:
                    self._fault(f"asking what goes: {response.status_code} {response.text}")

    def _err(self) -> None:
        """A bad request, which must be refused as what it is and harm nobody."""
        reader = self._world.readers[0].reference
        body, status, code = self._dice.choice(
            [
                ({"adapter_id": "nobody", "inputs": ["a"]}, 404, "adapter_not_found"),
                ({"adapter_id": reader, "inputs": ["a"], "base_model": "x"}, 400, "base_mismatch"),
                ({"adapter_id": reader, "inputs": ["word " * 5000]}, 400, "too_long"),
                ({"adapter_id": reader, "inputs": [{"nonsense": 1}]}, 400, "bad_input"),
                ({"base_model": "none", "inputs": ["a"]}, 404, "base_not_found"),
                (
                    {"adapter_id": self._world.broken.reference, "inputs": ["a"]},
                    500,
                    "adapter_corrupt",
                ),
            ]
        )
        response = self._http.post("/predict", json=body)
        told = response.json().get("error", {}).get("code")
        if (response.status_code, told) == (status, code):
            self._world.findings.provoke(code)
        else:
            self._fault(f"a bad request ({code}): {response.status_code} {response.text[:300]}")

    # ---- asking and checking ----

    def _predict(
        self,
        rows: Sequence[Row],
        *,
        task: str | None = None,
        timeout: float = 120,
    ) -> dict[str, Any] | None:
        inputs = [
            {"adapter_id": known.reference, "base_model": known.base, "input": text}
            | ({"options": options} if options else {})
            for known, text, options in rows
        ]
        return self._post({"inputs": inputs} | ({"task": task} if task else {}), timeout=timeout)

    def _post(self, body: Mapping[str, Any], *, timeout: float = 120) -> dict[str, Any] | None:
        response = self._http.post("/predict", json=body, timeout=timeout)
        if response.status_code != 200:
            self._fault(f"/predict: {response.status_code} {response.text[:300]}")
            return None
        found: dict[str, Any] = response.json()
        return found

    def _check_rows(
        self,
        rows: Sequence[Row],
        task: str | None,
        answer: Mapping[str, Any] | None,
    ) -> None:
        if answer is None:
            return
        told = zip(rows, answer["outputs"], answer["receipts"], strict=True)
        for (known, text, options), output, receipt in told:
            self._check(known, text, output, receipt, task, options)

    def _check(
        self,
        known: Known,
        text: str,
        output: Any,
        receipt: Mapping[str, Any],
        task: str | None,
        options: Mapping[str, Any],
    ) -> None:
        wrong = self._world.oracle.disagreement(
            known, text, output, receipt, task=task, options=options
        )
        with self._world.findings.lock:
            self._world.findings.checked += 1
        if wrong:
            self._disagree(wrong)

    @contextmanager
    def _streaming(
        self,
        http: httpx.Client,
        known: Known,
        text: str,
        options: Mapping[str, Any],
        *,
        slowly: bool = False,
    ) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        body = {
            "adapter_id": known.reference,
            "base_model": known.base,
            "inputs": [text],
            "options": {**options, "stream": True},
        }
        with http.stream("POST", "/predict", json=body) as response:
            if response.status_code != 200:
                response.read()
                self._lost_or_fault(response.json(), "a stream did not begin")
                yield iter(())
            else:
                yield _events(response, slowly=slowly)

    def _check_stream(
        self,
        known: Known,
        text: str,
        options: Mapping[str, Any],
        events: Iterator[tuple[str, dict[str, Any]]],
    ) -> None:
        pieces: Counter[int] = Counter()
        written: dict[int, str] = {}
        for name, data in events:
            if name == "text":
                pieces[data["choice"]] += 1
                written[data["choice"]] = written.get(data["choice"], "") + data["text"]
            elif name == "output":
                output = data["output"]
                for place, choice in enumerate(output.get("choices", [output])):
                    if written.get(place, "") != choice["text"]:
                        self._disagree(f"pieces {written.get(place)!r} of {choice['text']!r}")
                self._check(known, text, output, data["receipt"], None, options)
            elif name == "error":
                self._lost_or_fault(data, "a stream broke")

    def _lost_or_fault(self, body: Mapping[str, Any], what: str) -> None:
        code = body["error"]["code"]
        if code in _LOST and self._world.findings.replica_is_down:
            self._world.findings.provoke(f"replica killed: {code}")
        else:
            self._fault(f"{what}: {body}")

    def _options(self, known: Known, *, sampled: bool = False) -> dict[str, Any]:
        if known not in self._world.writers:
            return {}
        own: dict[str, Any] = {"max_new_tokens": self._world.new_tokens}
        if sampled and self._dice.random() < 0.5:
            own |= {"temperature": 0.8, "top_p": 0.9, "seed": self._dice.randrange(3)}
        return own

    def _text(self) -> str:
        return self._dice.choice(self._world.texts)

    def _fault(self, what: str) -> None:
        self._world.findings.wrong(self._world.findings.errors, what)

    def _disagree(self, what: str) -> None:
        self._world.findings.wrong(self._world.findings.disagreements, what)


def _events(response: httpx.Response, *, slowly: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events; slowly: a small bite at a time."""
    name, rest = "", ""
    for piece in response.iter_text(_SLOW_READ_BYTES if slowly else None):
        if slowly:
            pause(_SLOW_PAUSE_SECONDS)
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            field_, _, value = line.partition(": ")
            if field_ == "event":
                name = value
            elif field_ == "data":
                yield name, json.loads(value)
