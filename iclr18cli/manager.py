"""Finding plugins, holding them apart, and keeping their faults from the user.

Plugins are entry points of the group `iclr18`, ours and everybody's alike. One that raises, exits, hangs, returns
rubbish or takes a used name costs one warning line and its own commands, never the tool.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from iclr18cli import hookspecs
from iclr18cli.errors import Interrupted, UsageError
from iclr18cli.health import PluginHealth
from iclr18cli.plugin import API, AttackSpec, CertifierSpec, Check, DatasetSpec, ModelSpec, Technique
from iclr18cli.records import OFFERS, check_record
from iclr18cli.time_limit import PluginTimeout, time_limit

GROUP = "iclr18"
OWN_DISTRIBUTION = "iclr18"
BY_HAND = "registered by hand"
FAULTS = (Exception, SystemExit, PluginTimeout)
CORE_COMMANDS = ("attack", "certify", "runs", "data", "models", "plugins", "report", "reproduce")


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
        self._loaded: dict[str, PluginHealth] = {}
        self._dropped_observers: set[str] = set()
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
        if health.name in self._loaded:
            owner = self._loaded[health.name].distribution
            self._leave_out(health, "clashing", f"a plugin named '{health.name}' is loaded already, from {owner}")
            return
        self._loaded[health.name] = health
        self._manager.register(plugin, name=health.name)
        callers = self._manager.get_hookcallers(plugin) or []
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        if unknown:
            raise AttributeError(f"unknown hook {', '.join(unknown)}")
        health.hooks = tuple(caller.name for caller in callers)

    def register(self, plugin: Any, *, name: str) -> PluginHealth:
        """Add a plugin object by hand (tests, notebooks); faults are handled as for an installed one."""
        health = PluginHealth(name, BY_HAND, "")
        self.health.append(health)
        self._offered.clear()
        with self._guard(health):
            self._register(plugin, health)
        return health

    def unregister(self, name: str) -> None:
        """Take a plugin out again that was added by hand."""
        self._offered.clear()
        for health in [h for h in self.health if h.name == name and h.distribution == BY_HAND]:
            self._forget(health)
            self.health.remove(health)

    def _forget(self, health: PluginHealth) -> None:
        if self._loaded.get(health.name) is health:
            del self._loaded[health.name]
            self._dropped_observers.discard(health.name)
            if self._manager.has_plugin(health.name):
                self._manager.unregister(name=health.name)

    @contextmanager
    def _guard(self, health: PluginHealth) -> Iterator[None]:
        """Leave the plugin out if the block raises, exits or hangs; what it prints goes to stderr."""
        try:
            with redirect_stdout(sys.stderr), time_limit(self._seconds):
                yield
        except Interrupted:
            raise
        except FAULTS as error:
            if self._strict:
                raise
            self._leave_out(health, "broken", _first_line(error), traceback.format_exc())

    def _leave_out(self, health: PluginHealth, state: str, error: str, detail: str = "") -> None:
        health.state, health.error, health.detail = state, error, detail
        self._forget(health)
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
        records: dict[str, Any] = {}
        for record in answer:
            check_record(record, OFFERS[kind])
            if record.name in records:
                raise ValueError(f"the name '{record.name}' is offered twice")
            records[record.name] = record
        return list(records.values())

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
        """Return the plugin that offers a record of a kind ("techniques", "models", …); None: the core or nobody."""
        return self._offers(kind).get(name, (None,))[0]

    def survey(self) -> list[PluginHealth]:
        """Ask every plugin for everything it offers and return the health of all."""
        for kind in OFFERS:
            self._offers(kind)
        return self.health

    def observe(self, event: str, **arguments: Any) -> None:
        """Tell the observers of `iclr18_<event>`; one that raises is reported once and left out from then on."""
        for implementation in list(getattr(self._manager.hook, f"iclr18_{event}").get_hookimpls()):
            name = implementation.plugin_name
            if name in self._dropped_observers:
                continue
            try:
                with redirect_stdout(sys.stderr), time_limit(self._seconds):
                    implementation.function(*(arguments[argument] for argument in implementation.argnames))
            except Interrupted:
                raise
            except FAULTS as error:
                if self._strict:
                    raise
                # Only the observer goes: the plugin's networks and data sets may be what the run is made of.
                health, self._dropped_observers = self._loaded[name], self._dropped_observers | {name}
                health.error, health.detail = f"as an observer: {_first_line(error)}", traceback.format_exc()
                self._warn(f"warning: plugin {health.origin} observes no more: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    distribution: Any = getattr(entry, "dist", None)
    try:
        return distribution.name or "unknown distribution", distribution.version or ""
    except Exception:  # not installed by a distribution, or what is left of one that was removed by hand
        return "unknown distribution", ""


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


def _seconds(variable: str, default: float) -> float:
    try:
        seconds = float(os.environ.get(variable) or default)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"{variable} must be a number of seconds greater than 0; received {os.environ[variable]!r}.")
    return seconds


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
        seconds=_seconds("ICLR18_PLUGIN_SECONDS", 20.0),
    )
