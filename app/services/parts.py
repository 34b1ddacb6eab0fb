"""What the services work with: opened once by the process, passed on, never looked up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.services.callers import KnownCallers
from app.services.known_adapters import KnownAdapters
from app.services.measures import Measures
from app.services.replicas import Replicas
from core.db import Database, Session
from core.queue import JobQueue
from core.settings import Settings
from core.storage import ObjectStore
from core.webhooks.sending import WebhookSender


@dataclass(frozen=True)
class Parts:
    """The process's settings and its connections."""

    settings: Settings
    database: Database
    store: ObjectStore
    queue: JobQueue
    inference: Replicas
    measures: Measures
    callers: KnownCallers = field(default_factory=KnownCallers)
    known_adapters: KnownAdapters = field(default_factory=KnownAdapters)
    webhooks: WebhookSender = field(default_factory=lambda: WebhookSender(most=4))
    """Of tests; a worker sends everything else."""

    @contextmanager
    def unit(self) -> "Iterator[Unit]":
        """Open a transaction, and do afterwards what was to wait for its commit.

        Yields:
            The unit.
        """
        with self.database.write() as session:
            unit = Unit(session)
            yield unit
        for call in unit.after_commit:
            call()


@dataclass(frozen=True)
class Unit:
    """One transaction, and what shall happen once it is committed.

    A message to a worker that overtakes its row would find nothing; so messages wait here.
    """

    session: Session
    after_commit: list[Callable[[], object]] = field(default_factory=list)

    def then(self, call: Callable[[], object]) -> None:
        """Do something after the commit; nothing happens when the transaction fails.

        Args:
            call: Must not raise for an outage; the answer is already decided.
        """
        self.after_commit.append(call)
