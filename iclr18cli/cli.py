"""The root app: core commands, one group per technique, and what every ending means."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer

from iclr18cli import __version__
from iclr18cli.errors import ExitCode, Interrupted, UserError
from iclr18cli.lazy import LazyGroup, Stub
from iclr18cli.plugin import Technique

CORE = (
    ("attack", "Try to break predictions: an upper bound of robust accuracy", "iclr18cli.commands.attack:app"),
    ("certify", "State what holds, with its verdict and its limits", "iclr18cli.commands.certify:app"),
    ("runs", "List, compare, plot and remove runs", "iclr18cli.commands.runs:app"),
    ("data", "List, fetch, verify and import data sets", "iclr18cli.commands.data:app"),
    ("models", "List networks and show their layers", "iclr18cli.commands.models:app"),
    ("plugins", "List plugins and check their health", "iclr18cli.commands.plugins:app"),
)


def _core_stubs() -> Iterable[Stub]:
    for name, summary, target in CORE:
        yield Stub(name, summary, panel="Core", open=lambda target=target: _open_core(target))


def _open_core(target: str) -> Any:
    from iclr18cli.plugin import resolve

    app = resolve(target)
    return typer.main.get_command(app()) if inspect.isfunction(app) else typer.main.get_group(app)


def _technique_stubs() -> Iterable[Stub]:
    from iclr18cli.manager import plugins

    for technique in plugins().techniques():
        yield Stub(technique.name, technique.summary, panel=technique.panel, open=lambda t=technique: technique_group(t))


def technique_group(technique: Technique) -> LazyGroup:
    """Return the group of a technique's commands; each is built from its config class when it is called."""
    stubs = [
        Stub(name, command.summary, panel=None, open=lambda name=name: technique_command(technique, name))
        for name, command in technique.commands.items()
    ]
    help_text = f"{technique.summary}. {technique.paper}".rstrip(". ") + "."
    return LazyGroup(name=technique.name, help=help_text, no_args_is_help=True, stubs=lambda: stubs)


def technique_command(technique: Technique, name: str) -> Any:
    """Build the Typer command of a technique's command from its record and its config class."""
    from iclr18cli import config as configs
    from iclr18cli.execute import Call, dry_run, perform

    command = technique.commands[name]
    config_class = import_guarded(technique, lambda: configs.command_config(command))
    settings_class = Call(technique, name).settings_class
    presets = import_guarded(technique, lambda: configs.presets(technique, name))
    several = "RUN: a path, a name, the beginning of one, or @last."

    def run(ctx: typer.Context, /, **given: Any) -> None:
        flags = {n: v for n, v in given.items() if on_command_line(ctx, n)}
        named = given.get("run") or given.get("runs") or ()
        call = Call(
            technique, name,
            preset=given["preset"], file=given["config"],
            flags=configs.explicit(config_class, flags) | configs.explicit(settings_class, flags),
            runs=[named] if isinstance(named, str) else list(named),
            argv=sys.argv[1:],
        )  # fmt: skip
        deliver(ctx, lambda console: dry_run(call) if given["dry_run"] else perform(call, console), given)

    listing = "; ".join(f"{p.name}: {p.about}" if p.about else p.name for p in presets.values())
    extra = [
        _parameter("preset", Annotated[str, typer.Option("--preset", help=f"Named set of options. {listing}", show_default=False, metavar="PRESET")], ""),
        _parameter("config", Annotated[str, typer.Option("--config", help="TOML file of options; flags win over it.", show_default=False, metavar="FILE")], ""),
        _parameter("dry_run", Annotated[bool, typer.Option("--dry-run", help="Print the resolved options and stop.")], False),
    ]  # fmt: skip
    subject = {
        "nothing": [],
        "run": [inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, typer.Argument(metavar="RUN", help=several)])],
        "runs": [inspect.Parameter("runs", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[list[str], typer.Argument(metavar="RUN...", help=several)])],
    }[command.takes]  # fmt: skip
    made = configs.parameters(config_class, panel=f"{technique.name} {name}")
    shared = configs.parameters(settings_class, panel="Run")
    return typer_command(run, name, [*subject, *made, *extra, *shared], help_text=f"{command.summary}.\n\n{inspect.getdoc(config_class)}")


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    option = annotation.__metadata__[0]
    option.rich_help_panel = "Run"
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def typer_command(function: Callable[..., None], name: str, parameters: Sequence[inspect.Parameter], *, help_text: str) -> Any:
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

    console = Console(quiet=given.get("quiet", False), as_json=given.get("json", False))
    outcome = work(console)
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


class Root(LazyGroup):
    """All commands: the core's, then the techniques."""

    def __init__(self, **attrs: Any):
        super().__init__(stubs=lambda: [*_core_stubs(), *_technique_stubs()], **attrs)


app = typer.Typer(cls=Root, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"iclr18 {__version__}")
        raise typer.Exit


def _block(names: list[str]) -> list[str]:
    from iclr18cli.manager import block

    block(word for text in names for word in text.split(","))
    return names


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
    block: Annotated[list[str], typer.Option("--block", help="Leave out a plugin.", callback=_block, is_eager=True)] = [],  # noqa: B006
) -> None:
    """Train it, attack it, certify it: techniques of ICLR 2018 with honest claims."""


def main() -> None:
    """Run the command line and exit with the code its ending has."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every ending is mapped here and nowhere else."""
    from iclr18cli.console import complain

    usage_error = typer.BadParameter.__mro__[1]
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="iclr18")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        complain(error)
        return int(error.code)
    except Interrupted as stop:
        if stop.hint:
            print(f"stopped; go on with  {stop.hint}", file=sys.stderr)
        return 128 + stop.signal
    except usage_error as error:
        print(_usage_line(error), file=sys.stderr)
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return int(ExitCode.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        log = getattr(error, "iclr18_log", None)
        if log is None or os.environ.get("ICLR18_STRICT") == "1":
            traceback.print_exc()
        where = f"; traceback in {log}" if log else ""
        print(f"bug: {type(error).__name__}: {error}{where}  (this is not your fault; please report it)", file=sys.stderr)
        return int(ExitCode.BUG)


def _usage_line(error: Any) -> str:
    context = getattr(error, "ctx", None)
    where = f"  see: {context.command_path} --help" if context else ""
    return f"error: {error.format_message()}{where}".replace("\n", " ")
