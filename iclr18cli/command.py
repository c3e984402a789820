"""Typer commands made from records and config classes: nobody writes an option twice."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from iclr18cli import launch
from iclr18cli.errors import ExitCode, UserError
from iclr18cli.lazy import LazyGroup, Stub
from iclr18cli.plugin import Technique

ONE_OF = "A path, a name, the beginning of one, or @last."
RUN = typer.Argument(metavar="RUN", help=ONE_OF)
RUNS = typer.Argument(metavar="RUN...", help=ONE_OF)
OPTIONAL_RUN = typer.Argument(metavar="[RUN]", help=ONE_OF)
OPTIONAL_RUNS = typer.Argument(metavar="[RUN]...", help=ONE_OF)


def technique_group(technique: Technique) -> LazyGroup:
    """Return the group of a technique's commands; each is built from its config class when it is called."""
    stubs = [
        Stub(name, command.summary, panel=None, open=partial(technique_command, technique, name))
        for name, command in technique.commands.items()
    ]
    help_text = f"{technique.summary}. {technique.paper}".rstrip(". ") + "."
    return LazyGroup(name=technique.name, help=help_text, no_args_is_help=True, stubs=lambda: stubs)


def technique_command(technique: Technique, name: str) -> Any:
    """Build the Typer command of a technique's command from its record and its config class."""
    from iclr18cli import config as configs
    from iclr18cli.call import Call, dry_run
    from iclr18cli.execute import perform
    from iclr18cli.presets import presets as presets_of

    command = technique.commands[name]
    config_class = import_guarded(technique, lambda: configs.command_config(command))
    settings_class = Call(technique, name).settings_class
    presets = import_guarded(technique, lambda: presets_of(technique, name))

    def run(ctx: typer.Context, /, **given: Any) -> None:
        flags = {n: v for n, v in given.items() if on_command_line(ctx, n)}
        named = given.get("run") or given.get("runs") or ()
        call = Call(
            technique, name,
            preset=given["preset"], file=given["config"],
            flags=configs.explicit(config_class, flags) | configs.explicit(settings_class, flags),
            runs=[named] if isinstance(named, str) else list(named),
            argv=ctx.obj or sys.argv[1:],
        )  # fmt: skip
        deliver(ctx, lambda console: dry_run(call) if given["dry_run"] else perform(call, console), given)

    listing = "; ".join(f"{p.name}: {p.about}" if p.about else p.name for p in presets.values())
    extra = [
        option("--preset", str, f"Named set of options. {listing}", metavar="PRESET"),
        option("--config", str, "TOML file of options; flags win over it.", metavar="FILE"),
        option("--dry-run", bool, "Print the resolved options and stop."),
    ]
    subject = {"nothing": [], "run": [argument("run", str, RUN)], "runs": [argument("runs", list[str], RUNS)]}
    shared = configs.parameters(settings_class, panel="Run")
    help_text = f"{command.summary}.\n\n{inspect.getdoc(config_class) or ''}"

    def build() -> Any:
        made = configs.parameters(config_class, panel=f"{technique.name} {name}")
        return typer_command(run, name, [*subject[command.takes], *made, *extra, *shared], help_text=help_text)

    return import_guarded(technique, build)


def argument(name: str, kind: Any, shown: Any) -> inspect.Parameter:
    """Return a parameter for an argument: RUN or RUNS, or their optional forms."""
    if shown in (OPTIONAL_RUN, OPTIONAL_RUNS):
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, shown]
        )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, shown])


def option(flag: str, kind: Any, help_text: str, *, metavar: str | None = None) -> inspect.Parameter:
    """Return a parameter for an option that is no config's; its default is empty."""
    shown = typer.Option(flag, help=help_text, metavar=metavar, rich_help_panel="Run", show_default=False)
    name = flag.removeprefix("--").replace("-", "_")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=kind(), annotation=Annotated[kind, shown])


def typer_command(
    function: Callable[..., None], name: str, parameters: Sequence[inspect.Parameter], *, help_text: str
) -> Any:
    """Give a function a signature and make it one Typer command."""
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    required_first = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)

    def command(ctx: typer.Context, **given: Any) -> None:
        function(ctx, **given)

    command.__signature__ = inspect.Signature([context, *required_first])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (context, *parameters)}
    app = typer.Typer(add_completion=False)
    app.command(name, help=help_text)(command)
    return typer.main.get_command(app)


def on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether the user gave the option, so that it wins over presets and files."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT", "PROMPT")


def deliver(ctx: typer.Context, work: Callable[..., Any], given: dict[str, Any]) -> None:
    """Do a command's work, print its outcome, and end with its exit code."""
    from iclr18cli.console import Console

    first = launch.place() == 0  # of several processes one talks
    console = Console(quiet=given.get("quiet", False) or not first, as_json=given.get("json", False))
    outcome = work(console)
    if first and outcome.document:  # empty where other processes did the work and spoke
        console.result(outcome.document, outcome.text)
    if outcome.code != ExitCode.DONE:
        raise typer.Exit(int(outcome.code))


def import_guarded(technique: Technique, load: Callable[[], Any]) -> Any:
    """Import a technique's code; a fault in it becomes an error that names the plugin."""
    from iclr18cli.manager import plugins

    try:
        return load()
    except (ImportError, AttributeError, TypeError, SyntaxError, ValueError) as error:
        owner = plugins().owner("techniques", technique.name)
        raise UserError(
            f"The technique '{technique.name}' cannot be loaded.",
            why=f"plugin {owner.origin if owner else '?'}: {type(error).__name__}: {error}",
            fix=f"reinstall or update {owner.distribution if owner else 'it'}; ICLR18_STRICT=1 shows the traceback",
        ) from error
