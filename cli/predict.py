"""`tunery predict`: ask an adapter or a base model."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.connection import connect
from cli.output import AsJson, as_text, show_json, stdout


def predict(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Adapter (id, name, name@version, alias), checkpoint, or base.")
    ],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Texts or JSON records; none: one a line of stdin.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Another adapter to answer beside it, or 'base'; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="For text generation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="For text generation; 0: always the likeliest token.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show the text of one input while it is written.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Asks an adapter, a checkpoint or the plain base of that name for one answer per input."""
    lines = inputs or [line.rstrip("\n") for line in sys.stdin]
    asked_options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    options = {name: value for name, value in asked_options.items() if value is not None}
    if stream:
        _check_stream(len(lines), is_plain=not (compare or as_json))
    with connect(context) as client:
        bases = {base["id"] for base in client.get("/models")["data"]}
        asked = {"base_model": model} if model in bases else {"adapter_id": model}
        rows = [_read_input(line) for line in lines]
        body = {**asked, "inputs": rows, "options": options}
        if compare:
            body["compare"] = [None if name == "base" else name for name in compare]
        if stream:
            _show_stream(client.events("/predict", body | {"options": options | {"stream": True}}))
            return
        answer = client.post("/predict", body)
    if as_json:
        show_json(answer)
        return
    columns = [(model, answer["outputs"])]
    columns += [
        (column["adapter_id"] or "base", column["outputs"]) for column in answer["comparison"] or []
    ]
    for place in range(len(rows)):
        for name, outputs in columns:
            # only a comparison needs to say who answers
            told = f"{name}: " if compare else ""
            stdout.print(as_text(told + short_answer(outputs[place])), highlight=False)


def _check_stream(inputs: int, *, is_plain: bool) -> None:
    """Refuses what a stream on a terminal cannot show.

    Raises:
        BadParameter: There is such.
    """
    if inputs != 1 or not is_plain:
        raise typer.BadParameter(
            "it shows one input; leave out --compare and --json", param_hint="--stream"
        )


def _show_stream(events: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """Prints text as it comes, or the output of a task that writes none."""
    has_text = False
    for name, data in events:
        if name == "text":
            has_text = True
            stdout.print(as_text(data["text"]), end="", highlight=False)
        elif name == "output":
            told = "" if has_text else short_answer(data["output"])
            stdout.print(as_text(told), highlight=False)


def short_answer(output: dict[str, Any]) -> str:
    """Returns the essence of an output: a label and its score, a text, else all as JSON.

    Args:
        output: One output of POST /predict.
    """
    if "label" in output:
        return f"{output['label']}  {output['score']:.3f}"
    if "text" in output:
        return str(output["text"])
    if "embedding" in output:
        return f"a vector of {len(output['embedding'])} numbers (--json shows it)"
    return json.dumps(output, ensure_ascii=False)


def _read_input(line: str) -> Any:
    if line.lstrip().startswith("{"):
        try:
            return json.loads(line)
        except ValueError:
            return line  # a text that only looks like a record
    return line
