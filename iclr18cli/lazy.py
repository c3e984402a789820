"""Groups whose commands are listed from records and built only when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Stub(TyperCommand):
    """Stands in for a command or a group in help, completion and typo suggestions.

    Args:
        name: The word on the command line.
        summary: One line of help.
        panel: The panel of the parent's help it appears under.
        open: Builds the real command.
    """

    def __init__(self, name: str, summary: str, *, panel: str | None, open: Callable[[], Any]):
        super().__init__(name=name, help=summary, callback=lambda: None, rich_help_panel=panel)
        self.open = open


class LazyGroup(TyperGroup):
    """A group made of stubs. `stubs` is called once, when the group is first listed or resolved."""

    def __init__(self, *, stubs: Callable[[], Iterable[Stub]] | None = None, **attrs: Any):
        super().__init__(**attrs)
        self._stubs = stubs or (lambda: ())
        self._filled = False

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            for stub in self._stubs():
                self.commands.setdefault(str(stub.name), stub)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of their stubs."""
        self._fill()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stub for help and completion."""
        self._fill()
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Build the real command that is about to run: the only place where a technique's code is imported."""
        self._fill()
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.open() if isinstance(command, Stub) else command, rest
