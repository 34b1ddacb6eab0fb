"""Another process of a job that several devices train: ``python -m worker.follower``.

Started by ``worker.followers`` for one job. It reads the job's rows and parent, loads the base, and
then takes its share of every step. It is told the job and says whether it is ready on one line, and
talks with nobody else: what is kept, told and published is the lead's.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import cast

from core.db import open_database
from core.logs import configure_logging
from core.settings import Settings, load_settings
from core.storage import open_store
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import EngineError
from peft_engine.training import NoCheckpoints, train
from peft_engine.training.parallel import World, local_store, meet
from worker.child import become_child_of
from worker.failures import explain
from worker.followers import READY
from worker.parents import read_parent
from worker.records import read_records
from worker.trainer_engine import PeftEngine

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Train one job after the lead.

    Args:
        arguments: Command line without the program; None reads ``sys.argv``.

    Returns:
        0, or 1 where it could not start or the job ended with an error.
    """
    parser = argparse.ArgumentParser(prog="worker.follower")
    for number in ("parent", "line", "rank", "size", "port"):
        parser.add_argument(f"--{number}", type=int, required=True)
    asked = parser.parse_args(arguments)
    become_child_of(asked.parent)
    settings = load_settings()
    configure_logging(settings)
    with Connection(asked.line) as line:
        spec = JobSpec.model_validate_json(line.recv_bytes())
        try:
            follow = _prepare(settings, spec)
        except Exception as error:  # noqa: BLE001 the lead tells it to the job's owner
            _log.exception("process %d of a job cannot start", asked.rank)
            line.send_bytes(json.dumps(asdict(explain(error))).encode())
            return 1
        line.send_bytes(READY)
    store = local_store(asked.size, asked.port)
    try:
        with meet(store=store, rank=asked.rank, size=asked.size) as world:
            follow(world)
    except EngineError as error:
        _log.info("process %d of a job: %s", asked.rank, error)
        return 1
    return 0


def _prepare(settings: Settings, spec: JobSpec) -> Callable[[World], object]:
    """Read and load all that the job needs."""
    database, store = open_database(settings), open_store(settings)
    engine = PeftEngine(settings)
    parent = None
    if spec.parent_adapter_id is not None:
        parent = cast(Delta, read_parent(database, store, engine, spec.parent_adapter_id))
    splits = read_records(database, store, spec, tick=lambda: None)
    warm = engine.load_base(spec.base_name, spec.training.precision)
    return lambda world: train(
        warm.base,
        spec,
        splits,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
        features=warm.features,
        router=warm.router,
        world=world,
        parent=parent,
    )


if __name__ == "__main__":
    sys.exit(main())
