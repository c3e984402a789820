"""`iclr18 attack RUN…`."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from iclr18cli import config as configs
from iclr18cli.attack.config import AttackConfig
from iclr18cli.call import Outcome
from iclr18cli.command import RUNS, argument, deliver, on_command_line, typer_command
from iclr18cli.execute import open_runs
from iclr18cli.settings import Settings


def app() -> Any:
    """Build the command from AttackConfig."""

    def attack(ctx: typer.Context, /, **given: Any) -> None:
        flags = {name: value for name, value in given.items() if on_command_line(ctx, name)}
        values = configs.explicit(AttackConfig, flags) | configs.explicit(Settings, flags)
        deliver(ctx, lambda console: perform(given["runs"], values, console), given)

    runs = argument("runs", list[str], RUNS)
    shared = configs.parameters(Settings, panel="Run")
    help_text = (
        "Try to break a run's predictions: an upper bound of its robust accuracy.\n\nSeveral runs make one table."
    )
    return typer_command(
        attack, "attack", [runs, *configs.parameters(AttackConfig, panel="Attack"), *shared], help_text=help_text
    )


def perform(references: list[str], values: dict[str, Any], console: Any) -> Outcome:
    """Attack runs one after the other, keep each report with its run, and set them side by side."""
    from iclr18cli.attack import registry
    from iclr18cli.console import plain, table

    config, settings = configs.layered((AttackConfig, Settings), layers=[("", values)])
    registry.find(config.attack, config.norm)  # a wrong name is told before torch is imported
    from iclr18cli.attack.evaluation import attack_run

    options = configs.to_dict(config) | {"seed": settings.seed}
    documents, texts = [], []
    for run in open_runs(references, settings, console):
        points = len(run.split(config.split, config.limit))
        with console.progress(points, f"attack {run.path.name}") as bar:
            report = attack_run(run, **dataclasses.asdict(config), progress=bar.advance)
        document = {"run": str(run.path), "options": options, **plain(report.to_json())}
        document["file"] = str(run.directory.write_result("attack", document, options))
        documents.append(document)
        texts.append(f"{report.to_text()}\nsaved  {document['file']}")
    if len(documents) == 1:
        return Outcome(documents[0], texts[0], value=documents[0])
    rows = [[d["run"], d["clean"]["accuracy"], d["robust"]["accuracy"], d["sample"]["n"]] for d in documents]
    text = "\n\n".join([*texts, table(["run", "clean accuracy", "robust accuracy (attack)", "n"], rows)])
    return Outcome({"runs": documents}, text, value=documents)
