"""The root app: core commands, one group per technique, and what every ending means."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from iclr18cli import __version__
from iclr18cli.command import technique_group
from iclr18cli.errors import ExitCode, Interrupted, UserError
from iclr18cli.launch import launch_id, leave, started
from iclr18cli.lazy import LazyGroup, Stub

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
        yield Stub(name, summary, panel="Core", open=partial(_open_core, target))


def _open_core(target: str) -> Any:
    from iclr18cli.plugin import resolve

    app = resolve(target)
    return app() if inspect.isfunction(app) else typer.main.get_group(app)


def _technique_stubs() -> Iterable[Stub]:
    from iclr18cli.manager import plugins

    for technique in plugins().techniques():
        opened = partial(technique_group, technique)
        yield Stub(technique.name, technique.summary, panel=technique.panel, open=opened)


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


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)]
Block = Annotated[list[str], typer.Option("--block", help="Leave out a plugin.", callback=_block, is_eager=True)]


@app.callback()
def root(version: Version = False, block: Block = []) -> None:  # noqa: B006
    """Train it, attack it, certify it: techniques of ICLR 2018 with honest claims."""


def main() -> None:
    """Run the command line and exit with the code its ending has."""
    code = run(sys.argv[1:])
    if started():
        leave(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every ending is mapped here and nowhere else."""
    usage_error: Any = typer.BadParameter.__mro__[1]
    stdout = sys.stdout
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="iclr18", obj=list(arguments))
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        from iclr18cli.console import complain

        if error.code != ExitCode.LOST or not launch_id():  # the launcher tells of the rank that was lost
            complain(error)
        return int(error.code)
    except Interrupted as stop:
        if stop.hint:
            print(f"stopped; go on with  {stop.hint}", file=sys.stderr)
        return 128 + stop.signal
    except usage_error as error:
        if error.format_message():  # empty where the help was shown instead
            print(_usage_line(error), file=sys.stderr)
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return int(ExitCode.SIGINT)
    except SystemExit:
        if sys.stdout is stdout:
            raise
        return 0  # the reader went away (`| head`): Typer has put a mute stream in the place of stdout and exits with 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        log = getattr(error, "iclr18_log", None)
        if log is None or os.environ.get("ICLR18_STRICT") == "1":
            traceback.print_exc()
        where = f"; traceback in {log}" if log else ""
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"bug: {what}{where}  (this is not your fault; please report it)", file=sys.stderr)
        return int(ExitCode.BUG)


def _usage_line(error: Any) -> str:
    context = getattr(error, "ctx", None)
    where = f"  see: {context.command_path} --help" if context else ""
    return f"error: {error.format_message()}{where}".replace("\n", " ")
