"""How answers are shown: JSON for programs, tables for people; news and errors go to stderr."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

# Without a terminal nothing is folded: a pipe wants whole words, and a log can scroll.
PIPE_COLUMNS = 160


def _console(*, errors: bool) -> Console:
    console = Console(stderr=errors, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


stdout = _console(errors=False)
stderr = _console(errors=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of the service as JSON.")]
Limit = Annotated[int, typer.Option(min=1, help="How many entries at most, newest first.")]


def show_json(value: object) -> None:
    """Prints a value as JSON, indented, one document.

    Args:
        value: Anything JSON can hold.
    """
    stdout.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, highlight=False)


def show_fields(value: dict[str, Any], names: Sequence[str]) -> None:
    """Prints named fields of one resource, one a line; a field without a value is left out.

    Args:
        value: The resource.
        names: Which fields, in this order.
    """
    table = Table.grid(padding=(0, 2))
    for name in names:
        if value.get(name) is not None:
            table.add_row(f"[bold]{name}[/bold]", as_text(value[name]))
    stdout.print(table)


def show_table(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Prints one line per resource.

    Args:
        rows: The resources.
        names: Columns, in this order.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(as_text(row.get(name)) for name in names))
    stdout.print(table)


def as_text(value: object) -> str:
    """Returns a value as a person reads it, with markup of the terminal switched off.

    Args:
        value: Anything JSON can hold.
    """
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value)
    return text.replace("[", r"\[")


def leave(code: int) -> NoReturn:
    """Ends the command.

    Args:
        code: Exit code.

    Raises:
        SystemExit: Always.
    """
    raise SystemExit(code)
