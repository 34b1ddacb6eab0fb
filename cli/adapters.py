"""`tunery adapters`: what was trained, or brought along."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from zipfile import ZIP_STORED, ZipFile

import typer

from cli.connection import connect
from cli.output import AsJson, Limit, show_fields, show_json, show_table, stdout
from cli.report import show_test
from cli.resources import show_deleted, show_list

app = typer.Typer(help="Trained adapters.", no_args_is_help=True)

COLUMNS = ("id", "reference", "task", "base_model", "parameters", "bytes", "created_at")
FIELDS = (
    *COLUMNS[:2],
    "aliases",
    *COLUMNS[2:5],
    "labels",
    "methods",
    "bytes",
    "digest",
    "base_fingerprint",
    "job_id",
    "dataset_id",
    "parent_adapter_id",
    "origin",
    "created_at",
)

RELATIVES = ("is", "adapter", "adapter_id", "job_id", "dataset_id", "deleted", "created_at")

Reference = Annotated[str, typer.Argument(help="Id, name, name@version, or alias.")]


@app.command("list")
def list_adapters(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists adapters."""
    show_list(context, "/adapters", COLUMNS, limit=limit, as_json=as_json)


@app.command("show")
@app.command("get", hidden=True)
def get_adapter(
    context: typer.Context,
    adapter: Reference,
    as_json: AsJson = False,
) -> None:
    """Shows one adapter, and what its test said."""
    with connect(context) as client:
        row = client.get(f"/adapters/{adapter}")
    if as_json:
        show_json(row)
        return
    show_fields(row, FIELDS)
    show_test(row)


@app.command("delete")
def delete_adapter(context: typer.Context, adapter: Reference, as_json: AsJson = False) -> None:
    """Deletes an adapter; refused while an alias, a job or a request needs it."""
    show_deleted(context, f"/adapters/{adapter}", as_json=as_json)


@app.command("lineage")
def lineage(context: typer.Context, adapter: Reference, as_json: AsJson = False) -> None:
    """Shows what an adapter was continued from, and what was continued from it."""
    with connect(context) as client:
        found = client.get(f"/adapters/{adapter}/lineage")
    if as_json:
        show_json(found)
        return
    rows = [{"is": "ancestor", **row} for row in reversed(found["ancestors"])]
    rows.append({"is": "itself", **found["adapter"]})
    rows += [{"is": "child", **row} for row in found["children"]]
    show_table(rows, RELATIVES)


@app.command("import")
def import_adapter(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(help="Folder, zip or tar of HF PEFT or AdapterHub, or a native file."),
    ],
    name: Annotated[str | None, typer.Option(help="Its name; else that of the file.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Its base; else the one that it states or fits.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classes in the order of the head, with commas between.")
    ] = None,
    multi_label: Annotated[
        bool | None, typer.Option(help="Whether a text may have several labels.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Imports an adapter; every reason is told when it cannot be."""
    fields = {"name": name, "base_model": base_model}
    if labels is not None:
        fields["labels"] = json.dumps([label.strip() for label in labels.split(",")])
    if multi_label is not None:
        fields["multi_label"] = json.dumps(multi_label)
    given = {key: value for key, value in fields.items() if value}
    with TemporaryDirectory() as scratch, connect(context) as client:
        file = _zipped(path, Path(scratch)) if path.is_dir() else path
        row = client.upload({"file": file}, given, path="/adapters")
    show_json(row) if as_json else show_fields(row, FIELDS)


@app.command("export")
def export_adapter(
    context: typer.Context,
    adapter: Reference,
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[
        str,
        typer.Option("--format", help="native, peft, peft-portable, adapterhub, merged or gguf."),
    ] = "native",
    without_head: Annotated[
        bool, typer.Option("--without-head", help="Only what acts on the base.")
    ] = False,
) -> None:
    """Downloads an adapter in a format of your choice."""
    query = {"format": form} | ({"head": "leave-out"} if without_head else {})
    with connect(context) as client:
        size = client.download(f"/adapters/{adapter}/export", target, **query)
    stdout.print(f"{target}: {size} bytes")


def _zipped(folder: Path, scratch: Path) -> Path:
    target = scratch / f"{folder.resolve().name}.zip"
    with ZipFile(target, "w", ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target
