"""What a monitor reads (``GET /metrics``): requests of this process, and the service as a whole.

Numbers only: no name of a tenant, a job or an adapter. What an inference process does stands on its
own page.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from core.db import Session, fleet, webhooks

_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""From an answer without the model to the longest wait for one; a followed stream lasts longer."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"})

NO_ROUTE = "none"
"""Stands for every path that is no route: what strangers try must not make new series."""


class Measures:
    """Durations of the requests that this process answered; safe to share by threads."""

    def __init__(self) -> None:
        # Of our own: the library's is one for the whole process, and tests have several services.
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "tunery_http_request_seconds",
            "Requests that this api process answered, by route as GET /docs names it.",
            ("method", "route", "status"),
            buckets=_BUCKETS_SECONDS,
            registry=self._registry,
        )

    def note(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note an answered request.

        Args:
            method: Of the request.
            route: Path of its route, parameters as names; None when there is none.
            status: Of the answer; 0 when the client went away before one was begun.
            seconds: From the first byte to the last.
        """
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route or NO_ROUTE, str(status)).observe(seconds)

    def render(self, session: Session) -> bytes:
        """Write the page.

        Args:
            session: To count the service's jobs and processes with.

        Returns:
            The Prometheus text format.
        """
        return generate_latest(self._registry) + generate_latest(_look_at(session))


def _look_at(session: Session) -> CollectorRegistry:
    """What the database says of the service now."""
    page = CollectorRegistry()
    jobs = Gauge("tunery_jobs", "Jobs of all tenants.", ("status",), registry=page)
    for status, count in fleet.count_jobs(session).items():
        jobs.labels(status.value).set(count)
    counts = {
        "jobs_lease_expired": (
            "Jobs whose worker fell silent and that no other has; more than 0 for long: no sweep.",
            fleet.count_expired_leases,
        ),
        "datasets_validating": (
            "Data sets that wait for a housekeeping worker or are with one.",
            fleet.count_validating,
        ),
        "batches_open": (
            "Batches that have not ended; they wait while no process of batches is up.",
            fleet.count_open_batches,
        ),
        "inference_processes": (
            "Inference processes that announced themselves lately.",
            fleet.count_inference,
        ),
        "webhook_deliveries_pending": (
            "Webhooks that are to be sent, now or after a pause.",
            webhooks.count_pending,
        ),
    }
    for name, (meaning, count_now) in counts.items():
        Gauge(f"tunery_{name}", meaning, registry=page).set(count_now(session))
    page.register(_Deliveries(session))
    return page


class _Deliveries(Collector):
    """A counter that the database keeps: no process that ends takes it back to nothing."""

    def __init__(self, session: Session) -> None:
        self._counts = webhooks.count_totals(session)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give the counter, without a time of its making, which would be that of this page."""
        family = CounterMetricFamily(
            "tunery_webhook_deliveries",
            "Webhooks that were delivered, or given up.",
            labels=("outcome",),
        )
        for outcome, count in self._counts.items():
            family.add_metric([outcome.value], count)
        yield family
