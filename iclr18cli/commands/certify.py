"""`iclr18 certify RUN --method M`, or `--model F` in place of RUN: every method takes its own of all options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from iclr18cli import config as configs
from iclr18cli import launch, spawn
from iclr18cli.call import Call, Outcome
from iclr18cli.certify.options import merged
from iclr18cli.certify.registry import certifiers, find
from iclr18cli.command import OPTIONAL_RUN, argument, deliver, on_command_line, option, typer_command
from iclr18cli.commands.certify_subject import OF_THE_TECHNIQUE, certify_subject, technique_of
from iclr18cli.console import complain
from iclr18cli.errors import UsageError, UserError
from iclr18cli.execute import perform as perform_call
from iclr18cli.plugin import resolve
from iclr18cli.settings import RankSettings
from iclr18cli.subject import OwnModelOptions

ALL = "all"


def app() -> Any:
    """Build the command from the configs of every method."""
    panels = merged({name: resolve(spec.config) for name, spec in certifiers().items()})

    def certify(ctx: typer.Context, /, **given: Any) -> None:
        flags = {name: value for name, value in given.items() if on_command_line(ctx, name)}
        classes = [*(cls for _, cls in panels), OwnModelOptions, RankSettings]
        values = {k: v for cls in classes for k, v in configs.explicit(cls, flags).items()}
        asked = given["run"] or "", given["method"] or ALL, values
        deliver(ctx, lambda console: perform(*asked, console, argv=ctx.obj or ()), given)

    names = ", ".join([*certifiers(), f"{OF_THE_TECHNIQUE} (the run's own claim)", ALL])
    method = option("--method", str, f"{names}; several separated by commas. Default: all.", metavar="M")
    options = [made for panel, cls in panels for made in configs.parameters(cls, panel=panel)]
    shared = configs.parameters(OwnModelOptions, panel="Your own model") + configs.parameters(RankSettings, panel="Run")
    help_text = (
        "State what holds for a run or your own model, with its verdict and its limits; a contradicted bound ends with "
        "exit code 4.\n\n"
        "all runs every method that applies and says of each other one why it does not. Among several methods an "
        "option goes to those that take it, and slow methods look at fewer points unless --limit is given."
    )
    return typer_command(
        certify, "certify", [argument("run", str, OPTIONAL_RUN), method, *options, *shared], help_text=help_text
    )


def perform(
    reference: str, method: str, values: dict[str, Any], console: Any, *, argv: Sequence[str] = ()
) -> Outcome:  # fmt: skip
    """Certify a run or an own model with the methods named, its technique's own, or all that apply."""
    names = chosen(method)
    shared = {field.name for field in configs.options(RankSettings)}
    owned = {field.name for field in configs.options(OwnModelOptions)}
    settings = configs.build(RankSettings, {k: v for k, v in values.items() if k in shared})
    own = configs.build(OwnModelOptions, {k: v for k, v in values.items() if k in owned})
    given = {k: v for k, v in values.items() if k not in shared | owned}
    references = [reference] if reference else []
    own.check(references)
    if reference and own.model:
        raise UsageError("certify looks at one model: name a run or --model, not both.")
    from iclr18cli.models.own import subjects

    run = subjects(references, own, settings, console)[0]

    def of_the_technique(options: Mapping[str, Any]) -> Outcome:
        kind: Any = Call(technique_of(run), "certify").settings_class
        taken = {field.name for field in configs.options(kind)}
        flags = {**{k: v for k, v in values.items() if k in shared & taken}, **options}
        return perform_call(Call(technique_of(run), "certify", flags=flags, runs=[reference]), console)

    if spawn.asked_for(settings):
        _ = run.card  # what is missing is told once, not by every rank
        return Outcome({}, "", code=spawn.spawn(settings, argv, tell=lambda line: complain(UserError(line))))
    with launch.joined(settings.device):
        return certify_subject(run, names, given, console, label=method, of_the_technique=of_the_technique)


def chosen(method: str) -> list[str]:
    """Return the methods that `--method` names, each once.

    Raises:
        UsageError: One of them does not exist, or none is named.
    """
    names = list(dict.fromkeys(name.strip() for name in method.split(",") if name.strip()))
    if not names:
        raise UsageError("--method names no method.", fix=f"one of {', '.join(certifiers())}, technique or all")
    for name in names:
        if name not in (OF_THE_TECHNIQUE, ALL):
            find(name)
    if ALL in names:
        names = [*certifiers(), *(name for name in names if name == OF_THE_TECHNIQUE)]
    return names
