"""What most resources have: a list, one of them by its id, and its end."""

from collections.abc import Callable, Sequence
from typing import Any

import typer

from cli.connection import connect
from cli.output import show_fields, show_json, show_table


def show_list(
    context: typer.Context,
    path: str,
    columns: Sequence[str],
    *,
    limit: int,
    as_json: bool,
    as_row: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    **filters: object,
) -> None:
    """Prints the newest entries of a list.

    Args:
        context: Of the running command.
        path: Of the list.
        columns: Of the table.
        limit: How many entries at most.
        as_json: Whether a program reads.
        as_row: Shapes an entry for people.
        **filters: Parameters of the query; None leaves one out.
    """
    with connect(context) as client:
        rows = list(client.pages(path, limit=limit, **filters))
    show_json(rows) if as_json else show_table(map(as_row, rows), columns)


def show_one(
    context: typer.Context, path: str, show: Callable[[dict[str, Any]], object], *, as_json: bool
) -> None:
    """Prints one resource.

    Args:
        context: Of the running command.
        path: Of the resource.
        show: Prints it for people.
        as_json: Whether a program reads.
    """
    with connect(context) as client:
        row = client.get(path)
    show_json(row) if as_json else show(row)


def show_deleted(context: typer.Context, path: str, *, as_json: bool) -> None:
    """Deletes a resource and prints that it is gone.

    Args:
        context: Of the running command.
        path: Of the resource.
        as_json: Whether a program reads.
    """
    with connect(context) as client:
        gone = client.delete(path)
    show_json(gone) if as_json else show_fields(gone, ("id", "deleted"))
