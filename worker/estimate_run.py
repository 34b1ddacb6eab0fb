"""An estimate in the trainer child: read, measure on the warm base, write what was found."""

import logging
from collections.abc import Callable
from typing import Any

from core.db import estimates
from core.db.models import Estimate
from core.states import EstimateStatus
from peft_engine.compression.watch import Watch
from peft_engine.configs import JobSpec
from peft_engine.configs.measurable import explain_unmeasured
from peft_engine.errors import ConfigError, EngineError
from worker.failures import explain
from worker.heartbeat import Fenced
from worker.job_run import Line, Obeyed, Workshop, load_base
from worker.parents import read_parent
from worker.protocol import OBEYED, Ended, Measure, Outcome
from worker.publishing import patiently
from worker.records import read_records

_log = logging.getLogger(__name__)


def run_estimate(shop: Workshop, measure: Measure, line: Line) -> None:
    """Measure to an end, which is reported.

    After ``succeeded`` the result stands in the row; every other end is for the supervisor to
    write.

    Args:
        shop: What the child has.
        measure: Which attempt.
        line: The talk with the supervisor.
    """
    name, attempt = measure.estimate_id, measure.attempt
    try:
        _run(shop, measure, line)
    except Fenced:
        ended = Ended(name, attempt, Outcome.FENCED)
    except Obeyed as obeyed:
        ended = Ended(name, attempt, OBEYED[obeyed.wish])
    except Exception as error:  # noqa: BLE001 the edge of an estimate: the supervisor must hear it
        if isinstance(error, EngineError):
            _log.info("%s: %s", name, error)
        else:
            _log.error("%s attempt %d failed", name, attempt, exc_info=error)
        ended = Ended(name, attempt, Outcome.FAILED, explain(error))
    else:
        ended = Ended(name, attempt, Outcome.SUCCEEDED)
    shop.engine.tidy()
    line.report(ended)


def _run(shop: Workshop, measure: Measure, line: Line) -> None:
    row = patiently(lambda: _read(shop, measure))
    check = _checking(measure, line)
    spec = JobSpec.model_validate(row.spec)
    if (why := explain_unmeasured(spec)) is not None:
        raise ConfigError(why.message, code="estimate_unavailable", param=why.param)
    splits = read_records(shop.database, shop.store, spec, tick=check)
    base = load_base(shop, spec, Watch(check, lambda *_: None))
    parent = None
    if spec.parent_adapter_id is not None:
        parent = read_parent(shop.database, shop.store, shop.engine, spec.parent_adapter_id)
    check()
    found = shop.engine.estimate(base, spec, splits, parent=parent, check=check)
    patiently(lambda: _write(shop, measure, dict(found)))


def _checking(measure: Measure, line: Line) -> Callable[[], None]:
    """Shows life at every forward, and ends what is no longer wanted."""

    def check() -> None:
        line.tick()
        wish = line.wish_for(measure)
        if wish is not None:
            raise Obeyed(wish)

    return check


def _read(shop: Workshop, measure: Measure) -> Estimate:
    """The row.

    Raises:
        Fenced: Another attempt has it, or it is over.
    """
    with shop.database.read() as session:
        row = estimates.get_for_worker(session, measure.estimate_id)
    if row is None or (row.attempt, row.status) != (measure.attempt, EstimateStatus.RUNNING):
        raise Fenced(measure.estimate_id)
    return row


def _write(shop: Workshop, measure: Measure, found: dict[str, Any]) -> None:
    """Keep the result.

    Raises:
        Fenced: Another attempt has the estimate, or it is over.
    """
    with shop.database.write() as session:
        kept = estimates.finish(
            session,
            measure.estimate_id,
            measure.attempt,
            EstimateStatus.SUCCEEDED,
            result=found,
        )
    if not kept:
        raise Fenced(measure.estimate_id)
