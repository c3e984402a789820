"""A command of a technique with everything it was given, and what it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iclr18cli import config as configs
from iclr18cli.errors import ExitCode, UsageError, did_you_mean
from iclr18cli.manager import plugins
from iclr18cli.plugin import Command, Technique
from iclr18cli.presets import preset_values
from iclr18cli.settings import RankSettings, Settings, TrainSettings

if TYPE_CHECKING:
    from iclr18cli.run.directory import RunDirectory

REPRODUCED = ("seed", "precision")
"""Shared settings that decide the result and are therefore kept in config.toml."""


@dataclass(frozen=True)
class Outcome:
    """What a command ends with: the JSON document, the text for a person, the exit code and the run it belongs to."""

    document: Mapping[str, Any]
    text: str
    code: int = ExitCode.DONE
    directory: RunDirectory | None = None
    value: Any = None


@dataclass(frozen=True)
class Call:
    """A command of a technique with everything it was given.

    Args:
        preset: Name of a preset, or "".
        file: Path of a TOML file, or "".
        flags: Values given on the command line or by a Python caller; they win over preset and file.
        runs: Names or paths of the runs it works on.
    """

    technique: Technique
    name: str
    preset: str = ""
    file: str = ""
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs: Sequence[str] = ()
    argv: Sequence[str] = ()

    @property
    def command(self) -> Command:
        """The command's record."""
        return self.technique.commands[self.name]

    @property
    def settings_class(self) -> type[Settings]:
        """The shared options this command has."""
        if self.command.gives == "run":
            return TrainSettings
        return RankSettings if self.command.ranks else Settings

    def resolved(self, **base: Any) -> tuple[Any, Any]:
        """Return (config, settings) from defaults, preset, file and flags; `base` comes right after the defaults."""
        layers = [
            ("the resumed run", base),
            (f"preset '{self.preset}'", preset_values(self.technique, self.name, self.preset)),
            (self.file, configs.read_toml(self.file) if self.file else {}),
            ("", self.flags),
        ]
        config, settings = configs.layered((configs.command_config(self.command), self.settings_class), layers=layers)
        return config, settings


def find_technique(name: str) -> Technique:
    """Return a technique by name.

    Raises:
        UsageError: no active plugin offers it.
    """
    known = {technique.name: technique for technique in plugins().techniques()}
    if name not in known:
        raise UsageError(f"There is no technique '{name}'.", fix=did_you_mean(name, known))
    return known[name]


def dry_run(call: Call) -> Outcome:
    """Resolve everything a command would run with, and do nothing."""
    import tomli_w

    config, settings = call.resolved()
    values = configs.to_dict(config)
    if call.command.gives == "run":
        values |= {name: getattr(settings, name) for name in REPRODUCED}
    document = {
        "technique": call.technique.name,
        "command": call.name,
        "config": values,
        "settings": configs.to_dict(settings),
    }
    return Outcome(document, tomli_w.dumps(values).rstrip())
