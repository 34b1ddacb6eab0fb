"""``/metrics`` in the Prometheus text format, written by hand: a dozen numbers need no library."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import ServiceError
from inference.bank import Bank
from inference.bases import Bases
from inference.scheduler import Scheduler
from inference.writers import Writers

_PREFIX = "tunery_inference"


class Metrics:
    """Counts of requests, and a page of them with the counts of the other parts."""

    def __init__(self, *, bases: Bases, bank: Bank, scheduler: Scheduler, writers: Writers) -> None:
        """Wire the parts whose counts are shown.

        Args:
            bases: Base models.
            bank: Cache of deltas.
            scheduler: Queue.
            writers: Decoding batches.
        """
        self._writers = writers
        self._bases = bases
        self._bank = bank
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._seconds = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Note one request: how it ended and how long it took.

        Yields:
            Nothing; the request runs inside.

        Raises:
            ServiceError: As the request raised it.
        """
        begun = time.monotonic()
        outcome = "internal_error"
        try:
            yield
            outcome = "ok"
        except ServiceError as error:
            outcome = error.code
            raise
        finally:
            with self._lock:
                self._requests[outcome] += 1
                self._seconds += time.monotonic() - begun

    def render(self) -> str:
        """The whole page."""
        return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        with self._lock:
            requests, seconds = dict(self._requests), self._seconds
        yield f"# TYPE {_PREFIX}_requests_total counter"
        for outcome, number in sorted(requests.items()):
            yield f'{_PREFIX}_requests_total{{outcome="{outcome}"}} {number}'
        yield from _counter("request_seconds_total", round(seconds, 6))
        queue = self._scheduler.state()
        yield from _gauge("rows_in_flight", queue.rows_in_flight)
        yield from _gauge("rows_waiting", queue.rows_waiting)
        yield from _counter("rows_total", queue.rows_done)
        yield from _counter("rows_expired_total", queue.rows_expired)
        yield from _counter("batches_total", queue.batches)
        yield from _counter("queue_seconds_total", round(queue.queue_seconds, 6))
        yield from _counter("requests_refused_total", queue.rejected)
        yield from _counter("written_tokens_total", self._writers.tokens)
        yield from _counter("decoding_steps_total", self._writers.steps)
        yield from _gauge("rows_writing", self._writers.rows)
        bank = self._bank.state()
        yield from _counter("delta_hits_total", bank.hits)
        yield from _counter("delta_loads_total", bank.loads)
        yield from _counter("delta_load_failures_total", bank.failures)
        yield from _counter("delta_load_seconds_total", round(bank.load_seconds, 6))
        yield from _counter("delta_evictions_total", bank.evictions)
        yield from _gauge("deltas", bank.deltas)
        yield from _gauge("deltas_pinned", bank.pinned)
        yield from _gauge("delta_device_bytes", bank.device_bytes)
        yield from _gauge("delta_host_bytes", bank.host_bytes)
        yield f"# TYPE {_PREFIX}_base_bytes gauge"
        for served in self._bases.all():
            yield f'{_PREFIX}_base_bytes{{base="{served.name}"}} {served.bytes or 0}'
        yield f"# TYPE {_PREFIX}_base_mixes_adapters gauge"
        for served in self._bases.all():
            if served.engine is not None:
                mixes = int(served.engine.mixes)
                yield f'{_PREFIX}_base_mixes_adapters{{base="{served.name}"}} {mixes}'


def _counter(name: str, value: float) -> Iterator[str]:
    yield f"# TYPE {_PREFIX}_{name} counter"
    yield f"{_PREFIX}_{name} {value}"


def _gauge(name: str, value: float) -> Iterator[str]:
    yield f"# TYPE {_PREFIX}_{name} gauge"
    yield f"{_PREFIX}_{name} {value}"
