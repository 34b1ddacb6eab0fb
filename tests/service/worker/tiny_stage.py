"""A stage whose workers train a tiny BERT, made by the test, with the real engine behind gates."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.db import Database
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.conftest import make_settings
from tests.service.worker.stage import Stage, closing
from tests.service.worker.tiny_bert import make_rows, make_tiny_bert


def tiny_stage(
    folder: Path,
    template: Path,
    valkey: ValkeyServer,
    *,
    rows: dict[str, int],
    bases: Sequence[str] = ("tiny",),
    **settings: Any,
) -> Iterator[Stage]:
    """Yield a stage and end it.

    Args:
        folder: Where all of it lies.
        template: A migrated SQLite database.
        valkey: The broker.
        rows: How many each split has.
        bases: Names of the one base.
        settings: Beside those of all stages.
    """
    # No test here waits for a child that does not obey: a busy machine must not make it one.
    patience = {"cancel_grace_seconds": 30.0, "silence_seconds": 30.0}
    tiny = make_tiny_bert(folder / "tiny-bert")
    shutil.copy(template, folder / "tunery.db")
    made = make_settings(
        folder,
        f"sqlite:///{folder}/tunery.db",
        valkey,
        base_models=dict.fromkeys(bases, str(tiny)),
        checkpoint_seconds=0.001,
        **(patience | settings),
    )
    splits = {name: make_rows(n, seed=seed) for seed, (name, n) in enumerate(rows.items(), 1)}
    database = Database(made.database_url)
    app = "tests.service.worker.gated"
    yield from closing(Stage(made, database, folder, app, splits=splits))
    database.dispose()
