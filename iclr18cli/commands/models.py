"""`iclr18 models list | show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iclr18cli.console import Console, table
from iclr18cli.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

app = typer.Typer(no_args_is_help=True, help="List networks and show their layers.")


@app.command("list")
def list_models(json: Json = False) -> None:
    """List the networks that runs and --model can name."""
    from iclr18cli.models.registry import describe, models

    found = [describe(name) for name in models()]
    keys = ("name", "task", "input_shape", "parameters", "plugin", "summary")
    rows = [[" x ".join(map(str, m[k])) if k == "input_shape" and m[k] else m[k] for k in keys] for m in found]
    document = {"models": [{key: m[key] for key in keys} for m in found]}
    Console(as_json=json).result(document, table(["model", "task", "input", "parameters", "from", "summary"], rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    argument: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Argument of the network; may be repeated.")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Show a network's arguments, layers, output shapes and parameter counts."""
    from iclr18cli.models.registry import describe

    found = describe(name, **dict(map(_argument, argument)))
    rows = [
        [layer["name"], layer["type"], _shape(layer["output_shape"]), layer["parameters"]] for layer in found["layers"]
    ]
    lines = [f"{found['name']}  {found['task']}  {found['plugin']}", found["summary"], ""]
    lines += [f"  {key} = {value}" for key, value in found["arguments"].items()]
    lines += ["", table(["layer", "type", "output", "parameters"], rows), "", f"{found['parameters']:,} parameters"]
    Console(as_json=json).result(found, "\n".join(lines))


def _shape(shape: list[int | None] | None) -> str:
    return " x ".join("B" if n is None else str(n) for n in shape) if shape else ""


def _argument(text: str) -> tuple[str, Any]:
    import json

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set takes NAME=VALUE; received {text!r}.", fix="--set filters=16")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
