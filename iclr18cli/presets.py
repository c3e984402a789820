"""Presets: named sets of options in a TOML file beside a plugin's records."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.plugin import Technique


@dataclass(frozen=True)
class Preset:
    """A named set of options of one command; `about` says what it is for."""

    name: str
    about: str
    values: Mapping[str, Any]


def presets(technique: Technique, command: str) -> dict[str, Preset]:
    """Read the presets of a command: tables `[COMMAND.PRESET]` of the technique's TOML file, with a key `about`."""
    package = technique.commands[command].config.partition(":")[0].partition(".")[0]
    file = resources.files(package) / technique.presets
    if not file.is_file():
        return {}
    tables = tomllib.loads(file.read_text(encoding="utf-8")).get(command, {})
    return {name: Preset(name, table.pop("about", ""), table) for name, table in tables.items()}


def preset_values(technique: Technique, command: str, name: str) -> Mapping[str, Any]:
    """Return the options a preset sets; empty for the name ''.

    Raises:
        UsageError: there is no such preset.
    """
    if not name:
        return {}
    known = presets(technique, command)
    if name not in known:
        raise UsageError(f"{technique.name} {command} has no preset '{name}'.", fix=did_you_mean(name, known))
    return known[name].values
