"""A config is a frozen dataclass; its fields are the only source of options, TOML keys, ranges, defaults and help.

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig:
        gamma: Annotated[float, Option("Penalty on transport cost.", above=0)] = 1.3

Order of precedence: dataclass defaults < preset < --config FILE < explicit flags.
"""

from __future__ import annotations

import inspect
import math
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.plugin import Command, Option

Scalar = bool | int | float | str

SINGLE = 1e30
"""Numbers of this size, and one over it, can still be computed with in single precision."""


@dataclass(frozen=True)
class Field:
    """One option: its name in Python and TOML, the flag on the command line, its type and what Option says of it."""

    name: str
    type: Any
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        """The long option: `inner_steps` -> `--inner-steps`."""
        return "--" + self.name.rstrip("_").replace("_", "-")

    @property
    def item(self) -> Any:
        """The type of one value: T for `T`, `T | None` and `tuple[T, ...]`."""
        inner = [t for t in typing.get_args(self.type) if t not in (type(None), Ellipsis)]
        if typing.get_origin(self.type) is Literal or not inner:
            return self.type
        return inner[0]

    @property
    def many(self) -> bool:
        """Whether the option takes a list."""
        return typing.get_origin(self.type) is tuple

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values a Literal allows; empty for other types."""
        return typing.get_args(self.item) if typing.get_origin(self.item) is Literal else ()


@cache
def options(config: type) -> tuple[Field, ...]:
    """Return the options of a config dataclass.

    Raises:
        TypeError: a field has no default, no Option, or a type that cannot be an option.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    found = []
    for entry in fields(config):
        hint = hints[entry.name]
        metadata = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        option = next((m for m in metadata if isinstance(m, Option)), None)
        if option is None or entry.default is MISSING:
            raise TypeError(f"{config.__name__}.{entry.name} needs Annotated[T, Option(...)] and a default")
        base = typing.get_args(hint)[0]
        made = Field(entry.name, base, option, entry.default)
        if not _is_option(made):
            raise TypeError(f"{config.__name__}.{entry.name}: {base} cannot be an option")
        found.append(made)
    return tuple(found)


def _is_option(field: Field) -> bool:
    """Whether the type is T, T | None or tuple[T, ...] with T bool, int, float, str or a Literal of texts."""
    optional = field.item | None
    listed = tuple[field.item, ...]  # type: ignore[name-defined]
    texts = bool(field.choices) and all(isinstance(choice, str) for choice in field.choices)
    return (texts or field.item in (bool, int, float, str)) and field.type in (field.item, optional, listed)


def check(field: Field, value: Any, *, source: str) -> Any:
    """Return `value` as the field's type.

    Args:
        field: The option.
        value: What TOML, a preset, the command line or a Python caller gave.
        source: Where it came from, for the message: "--gamma", "gamma in my.toml".

    Raises:
        UsageError: wrong type, outside the range, or not one of the choices.
    """
    if field.many:
        values = value if isinstance(value, list | tuple) else [value]
        if not values and field.default:  # where an empty list means something, it is the default
            raise UsageError(f"{source} needs at least one value; received none.")
        return tuple(_check_one(field, one, source) for one in values)
    if value is None and type(None) in typing.get_args(field.type):
        return None
    return _check_one(field, value, source)


def _check_one(field: Field, value: Any, source: str) -> Any:
    item, option = field.item, field.option
    if field.choices:
        if value not in field.choices:
            raise UsageError(
                f"{source}: {value!r} is not a choice.", fix=did_you_mean(str(value), map(str, field.choices))
            )
        return value
    if item is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not item:
        noun = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[item]
        raise UsageError(f"{source} must be {noun}; received {value!r}.")
    if item in (int, float) and not _inside(value, option):
        wanted = _range(option) if math.isfinite(value) else " and ".join(dict.fromkeys(["finite", _range(option)]))
        raise UsageError(f"{source} must be {wanted}; received {value!r}.")
    if item is float and value and not 1 / SINGLE <= abs(value) <= SINGLE:
        raise UsageError(f"{source} must be 0 or {1 / SINGLE:g} .. {SINGLE:g} in size; received {value!r}.")
    return value


def _inside(value: float, option: Option) -> bool:
    return (
        math.isfinite(value)
        and (option.min is None or value >= option.min)
        and (option.max is None or value <= option.max)
        and (option.above is None or value > option.above)
    )


def _range(option: Option) -> str:
    low, high = option.above if option.above is not None else option.min, option.max
    parts = ["finite"] if low is None and high is None else []
    if low is not None:
        parts.append(f"{'greater than' if option.above is not None else 'at least'} {low:g}")
    if high is not None:
        parts.append(f"at most {high:g}")
    return " and ".join(parts)


def build(config: type, values: Mapping[str, Any], *, source: str = "") -> Any:
    """Make a config from named values, each checked.

    Raises:
        UsageError: an unknown name ("Did you mean …?"), or a value that `check` refuses.
    """
    known = {field.name: field for field in options(config)}
    checked = {}
    for name, value in values.items():
        key = name.replace("-", "_")
        if key not in known:
            raise UsageError(f"Unknown option '{name}'{source and ' in ' + source}.", fix=did_you_mean(key, known))
        checked[key] = check(known[key], value, source=f"{name} in {source}" if source else name)
    return config(**checked)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as a TOML-ready mapping: tuples become lists, None is left out."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a flat TOML file of options.

    Raises:
        UserError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML.", why=str(error), fix="mend the line it names") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}.", why=getattr(error, "strerror", None) or str(error)) from None


def layered(classes: Iterable[type], *, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Any]:
    """Make one config per class from layers of named values, later layers first in rank.

    Args:
        classes: Dataclasses with disjoint field names (a command's config and the shared settings).
        layers: (source, values) pairs from the weakest to the strongest; source is '' for the command line.

    Raises:
        UsageError: as `build`; an unknown name is looked up among all classes.
    """
    classes = list(classes)
    known = {field.name: (index, field) for index, cls in enumerate(classes) for field in options(cls)}
    chosen: list[dict[str, Any]] = [{} for _ in classes]
    for source, values in layers:
        for name, value in values.items():
            key = name.replace("-", "_")
            if key not in known:
                raise UsageError(f"Unknown option '{name}'{source and ' in ' + source}.", fix=did_you_mean(key, known))
            index, field = known[key]
            chosen[index][key] = check(field, value, source=f"{name} in {source}" if source else field.flag)
    return [cls(**values) for cls, values in zip(classes, chosen, strict=True)]


def literal(text: str) -> str:
    """Escape what rich would take for markup, such as "[default: …]"."""
    return re.sub(r"(\\*)(\[[a-z#/@])", r"\1\1\\\2", text)


def parameters(config: type, *, panel: str) -> list[inspect.Parameter]:
    """Return Typer parameters for the options of a config dataclass, under one help panel."""
    import typer

    made = []
    for field in options(config):
        option = field.option
        kind: Any = field.item
        extra: dict[str, Any] = {"help": literal(option.help), "rich_help_panel": panel, "metavar": option.metavar}
        default = field.default
        if field.many:
            kind, default = list[str], [",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in field.default)]
            extra["metavar"] = option.metavar or "LIST"
            extra["help"] += " Several: separate by commas, or repeat."
        elif kind is bool:
            extra |= {"param_decls": (f"{field.flag}/--no-{field.name.replace('_', '-')}",)}
            extra.pop("metavar")
        elif kind in (int, float):
            if option.above is None:
                extra |= {"min": option.min, "max": option.max}
            else:  # Typer knows closed ranges only; `check` keeps this one
                high = "" if option.max is None else f"<={option.max:g}"
                extra["metavar"] = option.metavar or f"<{kind.__name__}: {option.above:g}<x{high}>"
        if kind is not bool:
            extra["param_decls"] = (field.flag,)
        if default in ("", None, [""]):
            extra["show_default"] = False
        declarations = extra.pop("param_decls")
        annotation: Any = Annotated[kind if default is not None else kind | None, typer.Option(*declarations, **extra)]
        made.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return made


def explicit(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values given on the command line for a config's options, lists split at their commas.

    Raises:
        UsageError: a list holds something of the wrong type.
    """
    values: dict[str, Any] = {}
    for field in options(config):
        if field.name not in given:
            continue
        value = given[field.name]
        if field.many:
            words = [word.strip() for text in value for word in text.split(",") if word.strip()]
            value = tuple(_parse(field, word) for word in words)
        values[field.name] = value
    return values


def _parse(field: Field, word: str) -> Scalar:
    if field.item is str or field.choices:
        return word
    try:
        return field.item(word)
    except ValueError:
        raise UsageError(f"{field.flag} takes numbers separated by commas; received {word!r}.") from None


def command_config(command: Command) -> type:
    """Import the config class of a command."""
    from iclr18cli.plugin import resolve

    return resolve(command.config)
