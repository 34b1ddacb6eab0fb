"""`tunery orphans`: stored objects that no row speaks for; works on the database and the store."""

from typing import Annotated

import typer

from cli.output import AsJson, as_text, show_json, stderr, stdout
from cli.service import DataDir, keep_to_this_user
from core.db import open_database
from core.db.migrate import upgrade
from core.errors import Conflict
from core.settings import load_settings
from core.storage import open_store
from worker.orphans import ORPHANED_SECONDS, Orphans, delete_orphans, find_orphans

_HOUR_SECONDS = 3600


def orphans(
    data_dir: DataDir = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete them; without it nothing is changed.")
    ] = False,
    older_than_hours: Annotated[
        float, typer.Option(min=1, help="Younger objects may get their row yet.")
    ] = ORPHANED_SECONDS / _HOUR_SECONDS,
    force: Annotated[
        bool, typer.Option("--force", help="Delete them even if they are more than all others.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists stored objects that no row of the database speaks for, as a crash leaves them.

    A housekeeping worker deletes them by itself, unless they are more than all others together.
    """
    keep_to_this_user()
    settings = load_settings(**({"data_dir": data_dir} if data_dir else {}))
    upgrade(settings.database_url)
    database, store = open_database(settings), open_store(settings)
    seconds = older_than_hours * _HOUR_SECONDS
    try:
        found = find_orphans(database, store, older_than_seconds=seconds)
        deleted = 0
        if delete:
            _check_plausible(found, force=force)
            deleted = delete_orphans(database, store, found.keys, older_than_seconds=seconds)
    finally:
        database.dispose()
    if as_json:
        show_json({"keys": list(found.keys), "owned": found.owned, "deleted": deleted})
        return
    for key in found.keys:
        stdout.print(as_text(key), highlight=False)
    stderr.print(
        f"{len(found.keys)} without a row, {deleted} deleted; {found.owned} as old have one",
        highlight=False,
    )


def _check_plausible(found: Orphans, *, force: bool) -> None:
    """Refuse to delete more than stays.

    Raises:
        Conflict: There are more, and nothing says that this is meant.
    """
    if not found.is_plausible and not force:
        raise Conflict(
            f"{len(found.keys)} objects have no row and only {found.owned} have one: this may "
            "be the store of another database. Look at the list, then give --force"
        )
