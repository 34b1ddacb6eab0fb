"""`tunery tenants`: further tenants. Works on the database itself: no key may make a tenant."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.output import AsJson, show_fields, show_json, show_table
from cli.service import DataDir, keep_to_this_user
from core.db import Session, open_database, tenants
from core.db.migrate import upgrade
from core.db.models import Tenant
from core.errors import BadInput, NotFound
from core.settings import load_settings

app = typer.Typer(help="Tenants, on the database of this machine.", no_args_is_help=True)

MAX_NAME_CHARS = 64
FIELDS = ("id", "name", "key")


@app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Unique name.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Makes a tenant and its first key, which may do everything and is shown this once."""
    name = _checked(name)
    with _writing(data_dir) as session:
        tenant = tenants.create_tenant(session, name=name)
        made = tenants.create_key(session, tenant.id, name="first")
        shown = {"id": tenant.id, "name": tenant.name, "key": made.secret}
    show_json(shown) if as_json else show_fields(shown, FIELDS)


@app.command("list")
def list_tenants(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Lists tenants with their ids, which `TUNERY_TENANT_WEIGHTS` names."""
    with _writing(data_dir) as session:
        rows = [
            {"id": tenant.id, "name": tenant.name, "created_at": f"{tenant.created_at:%F}"}
            for tenant in tenants.list_tenants(session)
        ]
    show_json(rows) if as_json else show_table(rows, ("id", "name", "created_at"))


@app.command("key")
def create_key(
    name: Annotated[str, typer.Argument(help="Which tenant.")] = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Makes a further key that may do everything, for when all others were lost."""
    with _writing(data_dir) as session:
        tenant = _find(session, name)
        made = tenants.create_key(session, tenant.id, name="made-on-the-database")
        shown = {"id": tenant.id, "name": tenant.name, "key": made.secret}
    show_json(shown) if as_json else show_fields(shown, FIELDS)


@contextmanager
def _writing(data_dir: Path | None) -> Iterator[Session]:
    keep_to_this_user()
    settings = load_settings(**({"data_dir": data_dir} if data_dir else {}))
    upgrade(settings.database_url)
    database = open_database(settings)
    try:
        with database.write() as session:
            yield session
    finally:
        database.dispose()


def _find(session: Session, name: str) -> Tenant:
    tenant = tenants.find_tenant(session, name=name)
    if tenant is None:
        raise NotFound(f"there is no tenant named {name!r}", param="name")
    return tenant


def _checked(name: str) -> str:
    if not 0 < len(name.strip()) <= MAX_NAME_CHARS or not name.isprintable():
        message = f"a tenant's name has 1 to {MAX_NAME_CHARS} printable characters"
        raise BadInput(message, param="name")
    return name.strip()
