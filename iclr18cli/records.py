"""What a well-formed record is: its kind, its names, its texts, and the form of its targets. Nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from iclr18cli.plugin import AttackSpec, CertifierSpec, Check, Command, DatasetSpec, ModelSpec, Technique

OFFERS: dict[str, type] = {
    "techniques": Technique,
    "datasets": DatasetSpec,
    "models": ModelSpec,
    "attacks": AttackSpec,
    "certifiers": CertifierSpec,
    "checks": Check,
}
"""The kinds of records, by the last word of the hook that offers them."""
NAME = re.compile(r"[a-z0-9][a-z0-9._/-]*( [a-z0-9._/-]+)*")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TARGET_FIELDS = {"run", "load", "build", "config", "refuses"}
TEXT_FIELDS = {"summary", "panel", "paper", "authors", "presets", "argument", "license"}
WORD = re.compile(r"[a-z0-9][a-z0-9_-]*")
CHOICES = {name: get_args(get_type_hints(Command)[name]) for name in ("takes", "gives")}


def check_record(record: Any, expected: type) -> None:
    """Refuse a record that is not of the expected kind, not well named, or whose targets are not well formed.

    Raises:
        TypeError, ValueError: with what was received.
    """
    if not issubclass(type(record), expected):
        raise TypeError(f"expected {expected.__name__} records; received {record!r:.80}")
    if not (isinstance(record.name, str) and NAME.fullmatch(record.name)):
        raise ValueError(
            f"{expected.__name__} name must be lower-case letters, digits, . _ / -; received {record.name!r}"
        )
    for name in (f.name for f in fields(record) if f.name in TARGET_FIELDS):
        value = getattr(record, name)
        if not (isinstance(value, str) and (TARGET.fullmatch(value) or (value == "" and name == "refuses"))):
            raise ValueError(f"{record.name}: {name} must read 'module:attribute'; received {value!r}")
    for name in (f.name for f in fields(record) if f.name in TEXT_FIELDS):
        if not isinstance(getattr(record, name), str):
            raise TypeError(f"{record.name}: {name} must be a text; received {getattr(record, name)!r:.80}")
    if isinstance(record, Technique):
        _check_commands(record)


def _check_commands(technique: Technique) -> None:
    if not WORD.fullmatch(technique.name):
        raise ValueError(f"a technique's name is one word of the command line; received {technique.name!r}")
    if not isinstance(technique.commands, Mapping) or not technique.commands:
        raise ValueError(f"{technique.name}: commands must map names to Command records")
    for word, command in technique.commands.items():
        if not (isinstance(word, str) and WORD.fullmatch(word) and isinstance(command, Command)):
            raise ValueError(
                f"{technique.name}: commands must map words to Command records; received {word!r}: {command!r:.80}"
            )
        for value in (command.config, command.run):
            if not (isinstance(value, str) and TARGET.fullmatch(value)):
                raise ValueError(
                    f"{technique.name} {word}: config and run must read 'module:attribute'; received {value!r}"
                )
        if not isinstance(command.summary, str):
            raise TypeError(f"{technique.name} {word}: summary must be a text; received {command.summary!r:.80}")
        for name, choices in CHOICES.items():
            value = getattr(command, name)
            if value not in choices:
                raise ValueError(f"{technique.name} {word}: {name} is one of {', '.join(choices)}; received {value!r}")
