"""`tunery predict`: ask an adapter or a base model."""

import json
import sys
from typing import Annotated, Any

import typer

from cli.connection import connect
from cli.output import AsJson, as_text, show_json, stdout


def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Adapter (id, name, name@version, alias) or base.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Texts or JSON records; none: one a line of stdin.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Another adapter to answer beside it, or 'base'; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="For text generation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Asks an adapter, or the plain base model of that name, for one answer per input."""
    lines = inputs or [line.rstrip("\n") for line in sys.stdin]
    options = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
    with connect(context) as client:
        bases = {base["id"] for base in client.get("/models")["data"]}
        asked = {"base_model": model} if model in bases else {"adapter_id": model}
        rows = [_read_input(line) for line in lines]
        body = {**asked, "inputs": rows, "options": options}
        if compare:
            body["compare"] = [None if name == "base" else name for name in compare]
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
