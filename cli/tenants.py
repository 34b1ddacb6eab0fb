"""`tunery tenants`: further tenants. Works on the database itself: no key may make a tenant."""

from typing import Annotated

import typer

from cli.output import AsJson, show_fields, show_json
from cli.service import DataDir
from core.db import open_database, tenants
from core.db.migrate import upgrade
from core.errors import BadInput
from core.settings import load_settings

app = typer.Typer(help="Tenants, on the database of this machine.", no_args_is_help=True)

MAX_NAME_CHARS = 64


@app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Unique name.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Makes a tenant and its first key, which may do everything and is shown this once."""
    name = _checked(name)
    settings = load_settings(**({"data_dir": data_dir} if data_dir else {}))
    upgrade(settings.database_url)
    database = open_database(settings)
    try:
        with database.write() as session:
            tenant = tenants.create_tenant(session, name=name)
            made = tenants.create_key(session, tenant.id, name="first")
            shown = {"id": tenant.id, "name": tenant.name, "key": made.secret}
    finally:
        database.dispose()
    show_json(shown) if as_json else show_fields(shown, ("id", "name", "key"))


def _checked(name: str) -> str:
    if not 0 < len(name.strip()) <= MAX_NAME_CHARS or not name.isprintable():
        message = f"a tenant's name has 1 to {MAX_NAME_CHARS} printable characters"
        raise BadInput(message, param="name")
    return name.strip()
