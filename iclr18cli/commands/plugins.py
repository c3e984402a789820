"""`iclr18 plugins list | show | doctor`."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from iclr18cli.console import Console, table
from iclr18cli.errors import ExitCode, UsageError, did_you_mean
from iclr18cli.health import PluginHealth
from iclr18cli.manager import OFFERS, plugins
from iclr18cli.plugin import resolve

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

app = typer.Typer(no_args_is_help=True, help="List plugins and check their health.")


def describe(health: PluginHealth) -> dict[str, Any]:
    """Return a plugin's health as a JSON-ready mapping."""
    names = ("name", "distribution", "version", "state", "error", "import_ms", "imports_torch", "hooks", "offers")
    return {name: getattr(health, name) for name in names}


@app.command("list")
def list_plugins(json: Json = False) -> None:
    """List the plugins, their state and what they offer."""
    found = plugins().survey()
    rows = [
        [h.name, h.distribution, h.version, h.state, ", ".join(h.offers.get("techniques", [])), h.error] for h in found
    ]
    text = table(["plugin", "from", "version", "state", "techniques", "error"], rows)
    Console(as_json=json).result({"plugins": [describe(h) for h in found]}, text)


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="PLUGIN")], json: Json = False) -> None:
    """Show all that a plugin offers, its commands and presets, and the whole error of a broken one."""
    from iclr18cli.presets import presets

    found = {health.name: health for health in plugins().survey()}
    if name not in found:
        raise UsageError(f"There is no plugin '{name}'.", fix=did_you_mean(name, found))
    health = found[name]
    document: dict[str, Any] = describe(health) | {"detail": health.detail, "commands": {}}
    lines = [f"{health.name}  {health.distribution} {health.version}  {health.state}"]
    for technique in plugins().techniques():
        if technique.name in health.offers.get("techniques", []):
            lines.append(f"\n{technique.summary}. {technique.paper} {technique.authors}")
            for word, command in technique.commands.items():
                known = {p.name: p.about for p in presets(technique, word).values()}
                document["commands"][f"{technique.name} {word}"] = {"summary": command.summary, "presets": known}
                lines.append(f"  {technique.name} {word:<12}{command.summary}")
                lines += [f"      --preset {preset:<16}{about}" for preset, about in known.items()]
    for kind in OFFERS:
        if kind != "techniques" and health.offers.get(kind):
            lines.append(f"\n{kind}: {', '.join(health.offers[kind])}")
    if health.detail:
        lines.append(f"\n{health.detail.rstrip()}")
    Console(as_json=json).result(document, "\n".join(lines))


@app.command()
def doctor(json: Json = False) -> None:
    """Check the installation and resolve every target of every plugin; exit 4 if a fault is found."""
    checks = [*_installation(), *_health(), *_targets(), *_offered_checks()]
    rows = [[name, "ok" if ok else "FAULT", message] for name, ok, message in checks]
    document = {
        "ok": all(ok for _, ok, _ in checks),
        "checks": [{"name": name, "ok": ok, "message": message} for name, ok, message in checks],
    }
    Console(as_json=json).result(document, table(["check", "", "found"], rows))
    if not document["ok"]:
        raise typer.Exit(int(ExitCode.CLAIM))


def _installation() -> list[tuple[str, bool, str]]:
    python = (sys.version_info >= (3, 11), f"{sys.version.split()[0]}")
    import torch

    cuda = (
        f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device: runs on the CPU"
    )
    source = Path(__file__).parents[2] / "plugins"
    folders = {p.name for p in source.glob("iclr18_*") if p.is_dir()} if source.is_dir() else set()
    from importlib.metadata import entry_points

    known = {entry.value.partition(":")[0] for entry in entry_points(group="iclr18")}
    missing = sorted(folders - known)
    return [
        ("python", *python),
        ("torch", True, f"{version('torch')}, {cuda}"),
        ("torchattacks", importlib.util.find_spec("torchattacks") is not None, version("torchattacks")),
        (
            "entry points",
            not missing,
            f"not installed: {', '.join(missing)}; run pip install -e ." if missing else "all installed",
        ),
    ]


def _health() -> list[tuple[str, bool, str]]:
    fine = ("active", "blocked")
    return [
        (f"plugin {h.name}", h.state in fine, h.error or f"{h.state}, {h.import_ms:.0f} ms") for h in plugins().survey()
    ]


def _targets() -> list[tuple[str, bool, str]]:
    """Resolve every target: such strings rot unseen."""
    found = []
    for kind in OFFERS:
        for record in getattr(plugins(), kind)():
            commands = getattr(record, "commands", {"": record})
            faults = []
            for command in commands.values():
                for name in ("config", "run", "load", "build", "refuses"):
                    target = getattr(command, name, "")
                    try:
                        if target:
                            resolve(target)
                    except Exception as error:
                        faults.append(f"{target}: {type(error).__name__}: {error}")
            found.append((f"{kind} {record.name}", not faults, "; ".join(faults) or "targets resolve"))
    return found


def _offered_checks() -> list[tuple[str, bool, str]]:
    results = []
    for check in plugins().checks():
        try:
            ok, message = resolve(check.run)()
        except Exception as error:
            ok, message = False, f"{type(error).__name__}: {error}"
        results.append((check.name, bool(ok), str(message)))
    return results
