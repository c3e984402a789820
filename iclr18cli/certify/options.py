"""One set of options for several certificate methods: each name once, each method with its own defaults. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Annotated, Any, Literal

from iclr18cli import config as configs
from iclr18cli.config import Field
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import Option

SEVERAL = "Several methods"


def merged(classes: Mapping[str, type]) -> list[tuple[str, type]]:
    """Return (panel of the help, config class) with every option of every method once.

    Where methods differ in an option's default, it has none here and its help says each one's: a method keeps its own
    unless the user gives the option. Where they differ in its range or choices, the wider one stands here and each
    method checks its own.

    Args:
        classes: Method name -> its config class.

    Raises:
        UserError: Two methods take an option of one name with types that do not go together.
    """
    panels: dict[str, list[tuple[str, Any, Any]]] = {}
    names = {found.name: None for cls in classes.values() for found in configs.options(cls)}
    for name in names:
        takers = {
            method: found for method, cls in classes.items() for found in configs.options(cls) if found.name == name
        }
        panel = f"--method {next(iter(takers))}" if len(takers) == 1 else SEVERAL
        kind, option, default = _one(takers, classes)
        panels.setdefault(panel, []).append((name, Annotated[kind, option], field(default=default)))
    first = sorted(panels, key=lambda panel: panel != SEVERAL)
    return [(panel, make_dataclass("Options", panels[panel], frozen=True, kw_only=True)) for panel in first]


def _one(takers: Mapping[str, Field], classes: Mapping[str, type]) -> tuple[Any, Option, Any]:
    """Merge one option of several methods into (type, Option, default)."""
    fields = list(takers.values())
    many = any(f.many for f in fields)
    item: Any = _item(fields)
    default = fields[0].default
    agree = all(f.default == default and f.many == fields[0].many for f in fields)
    if not agree:
        default = () if many else None
    listed = tuple[item, ...]
    kind = listed if many else item if default is not None else item | None
    if len(fields) == 1:
        return fields[0].type, fields[0].option, default
    return kind, Option(
        _help(takers, classes, agree),
        min=_widest([f.option.min for f in fields], min),
        max=_widest([f.option.max for f in fields], max),
        above=fields[0].option.above if len({f.option.above for f in fields}) == 1 else None,
        metavar=next((f.option.metavar for f in fields if f.option.metavar), None),
    ), default  # fmt: skip


def _item(fields: list[Field]) -> Any:
    choices = dict.fromkeys(choice for f in fields for choice in f.choices)
    if choices and all(f.choices for f in fields):
        return Literal[tuple(choices)]
    kinds = {str if f.choices else f.item for f in fields}
    if kinds == {int, float}:
        return float
    if len(kinds) > 1:
        raise UserError(
            f"Two certificate methods take {fields[0].flag} as different things: "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}.",
            why="one option can have one type",
            fix="leave out one of the plugins by --block PLUGIN",
        )
    return kinds.pop()


def _widest(limits: list[float | None], choose: Any) -> float | None:
    return None if None in limits else choose(limits)


def _help(takers: Mapping[str, Field], classes: Mapping[str, type], agree: bool) -> str:
    """Say what the option means, which methods take it, and where they differ what each one's default is."""
    texts: dict[str, list[str]] = {}
    for method, found in takers.items():
        said = method
        if not agree and found.default not in ((), "", None):
            said += f" {_shown(found.default)}"
        cheap = under_all(classes[method]).get(found.name)
        if cheap is not None:
            said += f" ({_shown(cheap)} among several)"
        texts.setdefault(found.option.help, []).append(said)
    if len(texts) == 1:
        ((text, methods),) = texts.items()
        return f"{text} ({', '.join(methods)})"
    return " ".join(f"{', '.join(methods)}: {text}" for text, methods in texts.items())


def _shown(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def under_all(config: type) -> Mapping[str, Any]:
    """Return what a method takes in place of its defaults when it is one of several: its class's `under_all`."""
    return getattr(config, "under_all", {})


def belonging(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given options that a method takes, in the form it takes them.

    Raises:
        UsageError: It takes one value where several were given.
        UserError: It does not offer the choice that others offer.
    """
    values = {}
    for found in configs.options(config):
        if found.name not in given:
            continue
        value = given[found.name]
        if isinstance(value, tuple) and not found.many:
            if len(value) != 1:
                raise UsageError(f"{found.flag} takes one value here; received {_shown(value)}.")
            (value,) = value
        if found.item is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if found.choices and not isinstance(value, tuple) and value not in found.choices:
            raise UserError(
                f"It offers no {found.flag} {value}.", fix=f"{found.flag} with one of {', '.join(found.choices)}"
            )
        values[found.name] = value
    return values
