"""Finding plugins, holding them apart, and keeping their faults from the user.

Plugins are entry points of the group `iclr18`, ours and everybody's alike. One that raises, exits, hangs, returns
rubbish or takes a used name costs one warning line and its own commands, never the tool.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from iclr18cli import hookspecs
from iclr18cli.plugin import API, AttackSpec, CertifierSpec, Check, DatasetSpec, ModelSpec, Technique

GROUP = "iclr18"
OWN_DISTRIBUTION = "iclr18"
CORE_COMMANDS = ("attack", "certify", "runs", "data", "models", "plugins", "report", "reproduce")
OFFERS: dict[str, type] = {
    "techniques": Technique,
    "datasets": DatasetSpec,
    "models": ModelSpec,
    "attacks": AttackSpec,
    "certifiers": CertifierSpec,
    "checks": Check,
}
NAME = re.compile(r"[a-z0-9][a-z0-9._/-]*( [a-z0-9._/-]+)*")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TARGET_FIELDS = {"run", "load", "build", "config", "refuses"}


@dataclass
class PluginHealth:
    """What is known of one plugin: where it comes from, what it offers, and why it is left out if it is.

    `state` is active, blocked, broken, clashing or incompatible.
    """

    name: str
    distribution: str
    version: str
    state: str = "active"
    error: str = ""
    detail: str = ""
    import_ms: float = 0.0
    imports_torch: bool = False
    hooks: tuple[str, ...] = ()
    offers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Name the plugin and what installed it."""
        return f"'{self.name}' ({self.distribution} {self.version})"


class PluginTimeout(Exception):
    """A plugin did not answer in time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise PluginTimeout in the block after `seconds`; without effect outside the main thread and where there is no SIGALRM."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise PluginTimeout(f"no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Plugins:
    """All plugins of this process.

    Args:
        entries: Entry points to load; by default those of the group `iclr18` of every installed distribution.
        only: Names to load; None: all ($ICLR18_PLUGINS).
        block: Names to leave out ($ICLR18_BLOCK, --block).
        strict: Re-raise what a plugin raises ($ICLR18_STRICT=1).
        warn: Called with one line for each plugin that is left out because of a fault.
        seconds: How long a plugin may take to import or to answer a hook.
    """

    def __init__(
        self,
        entries: Iterable[EntryPoint] | None = None,
        *,
        only: Iterable[str] | None = None,
        block: Iterable[str] = (),
        strict: bool = False,
        warn: Callable[[str], None] | None = None,
        seconds: float = 20.0,
    ):
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._strict, self._seconds = strict, seconds
        self._warn = warn or (lambda line: print(line, file=sys.stderr))
        self._offered: dict[str, dict[str, tuple[PluginHealth, Any]]] = {}
        self.health: list[PluginHealth] = []
        found = entry_points(group=GROUP) if entries is None else entries
        for entry in sorted(found, key=lambda e: (_distribution(e)[0] != OWN_DISTRIBUTION, e.name)):
            self._load(entry, blocked=entry.name in set(block) or (only is not None and entry.name not in set(only)))

    def _load(self, entry: EntryPoint, *, blocked: bool) -> None:
        distribution, version = _distribution(entry)
        health = PluginHealth(entry.name, distribution, version, state="blocked" if blocked else "active")
        self.health.append(health)
        if blocked:
            return
        had_torch, start = "torch" in sys.modules, time.perf_counter()
        with self._guard(health):
            plugin = entry.load()
            made_for = getattr(plugin, "iclr18_api", API)
            if made_for != API:
                self._leave_out(health, "incompatible", f"made for interface {made_for}, this is interface {API}")
                return
            self._register(plugin, health)
        health.import_ms = 1000 * (time.perf_counter() - start)
        health.imports_torch = "torch" in sys.modules and not had_torch

    def _register(self, plugin: Any, health: PluginHealth) -> None:
        name = self._manager.register(plugin, name=health.name)
        if name is None:
            raise ValueError(f"a plugin named '{health.name}' is loaded already")
        callers = self._manager.get_hookcallers(plugin) or []
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        if unknown:
            raise AttributeError(f"unknown hook {', '.join(unknown)}")
        health.hooks = tuple(caller.name for caller in callers)

    def register(self, plugin: Any, *, name: str) -> PluginHealth:
        """Add a plugin object by hand (tests, notebooks); faults are handled as for an installed one."""
        health = PluginHealth(name, "registered by hand", "")
        self.health.append(health)
        self._offered.clear()
        with self._guard(health):
            self._register(plugin, health)
        return health

    def unregister(self, name: str) -> None:
        """Take a plugin out again."""
        self._offered.clear()
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.health = [health for health in self.health if health.name != name]

    @contextmanager
    def _guard(self, health: PluginHealth) -> Iterator[None]:
        """Leave the plugin out if the block raises, exits or hangs."""
        try:
            with time_limit(self._seconds):
                yield
        except (Exception, SystemExit) as error:
            if self._strict:
                raise
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            self._leave_out(health, "broken", said.splitlines()[0], traceback.format_exc())

    def _leave_out(self, health: PluginHealth, state: str, error: str, detail: str = "") -> None:
        health.state, health.error, health.detail = state, error, detail
        if self._manager.has_plugin(health.name):
            self._manager.unregister(name=health.name)
        self._warn(f"warning: plugin {health.origin} is left out: {error}  (iclr18 plugins show {health.name})")

    def _offers(self, kind: str) -> dict[str, tuple[PluginHealth, Any]]:
        if kind not in self._offered:
            taken: dict[str, tuple[PluginHealth, Any]] = {}
            for health in self.health:
                if health.state != "active" or f"iclr18_{kind}" not in health.hooks:
                    continue
                with self._guard(health):
                    records = self._ask(kind, health.name)
                    clash = next((r.name for r in records if r.name in taken or r.name in _reserved(kind)), None)
                    if clash is not None:
                        owner = taken[clash][0].origin if clash in taken else "the core"
                        self._leave_out(health, "clashing", f"the name '{clash}' is taken by {owner}")
                        continue
                    health.offers[kind] = [record.name for record in records]
                    taken |= {record.name: (health, record) for record in records}
            self._offered[kind] = taken
        return self._offered[kind]

    def _ask(self, kind: str, plugin_name: str) -> list[Any]:
        implementations = getattr(self._manager.hook, f"iclr18_{kind}").get_hookimpls()
        answer = next(impl.function() for impl in implementations if impl.plugin_name == plugin_name)
        records = list(answer)
        for record in records:
            check_record(record, OFFERS[kind])
        return records

    def _records(self, kind: str) -> list[Any]:
        return [record for _, record in self._offers(kind).values()]

    def techniques(self) -> list[Technique]:
        """Return the techniques of all active plugins, ours first."""
        return self._records("techniques")

    def datasets(self) -> list[DatasetSpec]:
        """Return the data sets that plugins add."""
        return self._records("datasets")

    def models(self) -> list[ModelSpec]:
        """Return the networks that plugins add."""
        return self._records("models")

    def attacks(self) -> list[AttackSpec]:
        """Return the attacks that plugins add."""
        return self._records("attacks")

    def certifiers(self) -> list[CertifierSpec]:
        """Return the certificate methods that plugins add."""
        return self._records("certifiers")

    def checks(self) -> list[Check]:
        """Return the lines that plugins add to `plugins doctor`."""
        return self._records("checks")

    def owner(self, kind: str, name: str) -> PluginHealth | None:
        """Return the plugin that offers the record `name` of a kind ("techniques", "models", …), None: the core or nobody."""
        return self._offers(kind).get(name, (None,))[0]

    def survey(self) -> list[PluginHealth]:
        """Ask every plugin for everything it offers and return the health of all."""
        for kind in OFFERS:
            self._offers(kind)
        return self.health

    def observe(self, event: str, **arguments: Any) -> None:
        """Tell the observers of `iclr18_<event>`; one that raises is reported once and left out from then on."""
        for implementation in list(getattr(self._manager.hook, f"iclr18_{event}").get_hookimpls()):
            health = next(h for h in self.health if h.name == implementation.plugin_name)
            with self._guard(health):
                implementation.function(*(arguments[name] for name in implementation.argnames))


def check_record(record: Any, expected: type) -> None:
    """Raise TypeError or ValueError unless a record is of the expected kind, well named, and its targets are well formed."""
    if not isinstance(record, expected):
        raise TypeError(f"expected {expected.__name__} records; received {record!r:.80}")
    if not (isinstance(record.name, str) and NAME.fullmatch(record.name)):
        raise ValueError(f"{expected.__name__} name must be lower-case letters, digits, . _ / -; received {record.name!r}")
    for name in (f.name for f in fields(record) if f.name in TARGET_FIELDS):
        value = getattr(record, name)
        if not (isinstance(value, str) and (TARGET.fullmatch(value) or (value == "" and name == "refuses"))):
            raise ValueError(f"{record.name}: {name} must read 'module:attribute'; received {value!r}")
    if isinstance(record, Technique):
        if not isinstance(record.commands, Mapping) or not record.commands:
            raise ValueError(f"{record.name}: commands must map names to Command records")
        for word, command in record.commands.items():
            for value in (getattr(command, "config", None), getattr(command, "run", None)):
                if not (isinstance(value, str) and TARGET.fullmatch(value)):
                    raise ValueError(f"{record.name} {word}: config and run must read 'module:attribute'; received {value!r}")


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    distribution = getattr(entry, "dist", None)
    return (distribution.name, distribution.version) if distribution else ("unknown distribution", "")


@cache
def _reserved(kind: str) -> frozenset[str]:
    """Return the names of a kind that belong to the core."""
    if kind == "techniques":
        return frozenset(CORE_COMMANDS)
    builtin = {"datasets": "iclr18cli.data.builtin", "models": "iclr18cli.models.builtin",
               "attacks": "iclr18cli.attack.builtin", "certifiers": "iclr18cli.certify.builtin"}  # fmt: skip
    if kind in builtin:
        import importlib

        return frozenset(record.name for record in importlib.import_module(builtin[kind]).BUILTIN)
    return frozenset()


def _words(variable: str) -> list[str] | None:
    value = os.environ.get(variable)
    return None if value is None else [word.strip() for word in value.split(",") if word.strip()]


_blocked: list[str] = []


def block(names: Iterable[str]) -> None:
    """Leave plugins out of this process (`--block`); to be called before the first use of `plugins()`."""
    _blocked.extend(names)


@cache
def plugins() -> Plugins:
    """Return the plugins of this process, loaded at the first call."""
    return Plugins(
        only=_words("ICLR18_PLUGINS"),
        block=[*_blocked, *(_words("ICLR18_BLOCK") or ())],
        strict=os.environ.get("ICLR18_STRICT") == "1",
        seconds=float(os.environ.get("ICLR18_PLUGIN_SECONDS", "20")),
    )
