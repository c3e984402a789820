"""What happens when a technique's command runs, whether the command line or Python called it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclr18cli import config as configs
from iclr18cli import launch, spawn
from iclr18cli.call import REPRODUCED, Call, Outcome
from iclr18cli.console import Console, complain, duration, plain, show_metrics
from iclr18cli.errors import ExitCode, UsageError, UserError
from iclr18cli.manager import plugins
from iclr18cli.paths import runs_root
from iclr18cli.plugin import Technique, resolve
from iclr18cli.report.text import certificates_text, metrics_text
from iclr18cli.settings import RankSettings, Settings, TrainSettings

if TYPE_CHECKING:
    from iclr18cli.run.directory import RunDirectory
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

DATASET_OPTIONS = ("dataset", "source", "target")
"""Options of any technique that name a data set."""


def perform(call: Call, console: Console) -> Outcome:
    """Run a command of a technique.

    Raises:
        UserError: what the user can mend, its subclasses included.
        Interrupted: a signal stopped a run after its state was saved.
    """
    _, settings = call.resolved()  # before torch is imported: wrong usage is told at once
    if isinstance(settings, RankSettings):
        if spawn.asked_for(settings):
            return Outcome({}, "", code=spawn.spawn(settings, call.argv, tell=partial(_failed, call)))
        with launch.joined(settings.device):
            return _make_run(call, console) if call.command.gives == "run" else _measure(call, console)
    return _measure(call, console)


def _failed(call: Call, line: str) -> None:
    on = "the same command with --resume auto goes on from the last checkpoint"
    complain(UserError(line, fix=on if call.command.gives == "run" else ""))


def _make_run(call: Call, console: Console) -> Outcome:
    sources = open_runs(call.runs, call.resolved()[1], console)
    run, directory = _start(call, console)
    if run is None:
        return _trained(call, directory)
    classes = (configs.command_config(call.command), TrainSettings)
    config, _ = configs.layered(classes, layers=[("config.toml", directory.config)])
    function = resolve(call.command.run)
    try:
        with run:
            told = function(config, run, *sources)
    except Exception as error:
        error.iclr18_log = directory.path / "log.txt"  # type: ignore[attr-defined]
        raise
    if not run.world.first:
        return Outcome({}, "")
    _draw_curves(directory)
    return _trained(call, directory, told)


def _draw_curves(directory: RunDirectory) -> None:
    from iclr18cli.report.plot import metric_curves, save

    lines = directory.metrics()
    if lines:
        save(metric_curves({directory.path.name: lines}), directory.path / "plots" / "curves.png")


def _start(call: Call, console: Console) -> tuple[Run | None, RunDirectory]:
    """Open a new run or the one to go on with; no run when that one is done already."""
    config, settings = call.resolved()
    from iclr18cli.run.start import open_run, resume_run, seen_by_all

    root = runs_root(settings.runs_dir)
    kept = {name: getattr(settings, name) for name in REPRODUCED}
    values = _portable(configs.to_dict(config)) | kept
    around: dict[str, Any] = {"progress": console.progress, "observer": plugins().observe}
    world = launch.world()
    directory = _to_resume(call, settings, root, values, console) if world.first else None
    if world.broadcast(directory is not None):
        directory = seen_by_all(world, directory)
    if directory is not None:
        values = directory.config
        settings = dataclasses.replace(settings, **{name: values[name] for name in REPRODUCED if name in values})
        if directory.status == "done":
            console.hint(f"{directory.path} is done already")
            return None, directory
        return resume_run(directory, settings, **around), directory
    owner = plugins().owner("techniques", call.technique.name)
    run = open_run(
        call.technique.name,
        values,
        settings,
        root=root,
        argv=call.argv,
        command=call.name,
        parent=call.runs[0] if call.runs else None,
        plugin=f"{owner.distribution} {owner.version}" if owner else "",
        **around,
    )
    return run, run.directory


def _to_resume(
    call: Call, settings: TrainSettings, root: Path, values: Mapping[str, Any], console: Console
) -> RunDirectory | None:  # fmt: skip
    """Return the run to go on with: the one that was named, or the one this launch began before a rank was lost."""
    from iclr18cli.run.directory import find_run
    from iclr18cli.run.find import relaunched, resumable

    if settings.resume not in ("", "auto"):
        directory = find_run(settings.resume, root)
        _refuse_changes(call, directory)
        return directory
    if launch.restarts():
        begun = relaunched(root, launch.launch_id(), out=settings.out)
        console.warn(f"a process was lost; starting again from {begun.path if begun else 'the beginning'}")
        return begun
    if not settings.resume:
        return None
    found = resumable(root, call.technique.name, values, settings.seed, name=settings.name, out=settings.out)
    console.hint(
        f"resume  {found.path}" if found else "resume  no unfinished run with these settings: starting a new one"
    )
    return found


def _portable(values: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of the user's own data absolute, so that the run opens from any folder."""
    from iclr18cli.data.registry import absolute

    return {name: absolute(value) if name in DATASET_OPTIONS else value for name, value in values.items()}


def _refuse_changes(call: Call, directory: RunDirectory) -> None:
    made_by = directory.info["technique"]
    if made_by != call.technique.name:
        raise UsageError(
            f"{directory.path} was made by '{made_by}'.", fix=f"iclr18 {made_by} train --resume {directory.path.name}"
        )
    names = {f.name for f in configs.options(configs.command_config(call.command))} | set(REPRODUCED)
    for name, value in call.flags.items():
        kept = directory.config.get(name)
        if name in names and kept != (list(value) if isinstance(value, tuple) else value):
            raise UsageError(
                f"A resumed run keeps its settings: {name}={value!r} differs from {kept!r}.",
                fix="leave the option out, or start a new run",
            )


def _trained(call: Call, directory: RunDirectory, told: Mapping[str, Any] | None = None) -> Outcome:
    """Tell what a run ended with; `told` is what its function returned to show beside the metrics."""
    info = directory.info
    seconds = info.get("seconds") or 0.0
    metrics = info.get("metrics", {})
    document: dict[str, Any] = {
        "run": str(directory.path),
        "technique": info["technique"],
        "status": directory.status,
        "metrics": metrics,
        "seconds": seconds,
        "seed": info.get("seed"),
    }
    figures = [str(path) for path in sorted((directory.path / "plots").glob("*.png"))]
    lines = []
    if told:
        document["result"] = plain(told)
        lines += [metrics_text({"metrics": document["result"]}).strip(), ""]
    lines += [f"saved  {directory.path}   {duration(seconds)}"]
    if not told:
        lines += [f"       {show_metrics(metrics)}"]
    if figures:
        document["figures"] = figures
        lines += [f"drawn  {figure}" for figure in figures]
    if (directory.path / "model.json").is_file():
        lines += [f"next   {line}" for line in next_commands(call.technique, directory.path)]
    return Outcome(document, "\n".join(lines), directory=directory)


def next_commands(technique: Technique, path: Path) -> list[str]:
    """Suggest what to do with a run."""
    own = [f"iclr18 {technique.name} {word} {path}" for word in ("eval", "certify") if word in technique.commands]
    task = json.loads((path / "model.json").read_bytes()).get("task")
    return [*own, *([f"iclr18 attack {path}"] if task == "classify" else [])]


def open_runs(references: Sequence[str], settings: Settings, console: Console) -> list[OpenedRun]:
    """Open runs for measuring.

    Raises:
        UserError: a run cannot be found or read.
    """
    from iclr18cli.run.directory import find_run

    found = [find_run(reference, runs_root(settings.runs_dir)) for reference in references]
    from iclr18cli.run.directory import RunDirectory
    from iclr18cli.run.opened import OpenedRun

    writes = launch.world().first
    directories = [RunDirectory(directory.path, writes=writes) for directory in found]
    return [OpenedRun(directory, settings, progress=console.progress) for directory in directories]


def _measure(call: Call, console: Console) -> Outcome:
    config, settings = call.resolved()
    function = resolve(call.command.run)
    opened = open_runs(call.runs, settings, console)
    start = time.perf_counter()
    if call.command.takes == "runs":
        value = function(config, opened)
    elif call.command.takes == "run":
        value = function(config, opened[0])
    else:
        from iclr18cli.run.opened import Workbench

        value = function(config, Workbench(settings, progress=console.progress))
    seconds = time.perf_counter() - start
    if not launch.world().first:
        return Outcome({}, "", value=value)
    directory = opened[0].directory if len(opened) == 1 else None
    given = {
        "technique": call.technique.name,
        "command": call.name,
        "options": configs.to_dict(config) | {"seed": settings.seed},
    }
    if call.command.gives == "certificates":
        return certified(value, directory, given, seconds)
    document = {**given, "runs": [str(run.path) for run in opened], "metrics": plain(value), "seconds": seconds}
    if directory is not None and call.command.gives == "metrics":
        document["file"] = str(directory.write_result("eval", document, document["options"] | {"command": call.name}))
    return Outcome(document, metrics_text(document), directory=directory, value=value)


def certified(
    certificates: Sequence[Any], directory: RunDirectory | None, given: Mapping[str, Any], seconds: float
) -> Outcome:
    """Keep certificates with their run and render them; exit code 4 if one is contradicted."""
    documents = [plain(certificate.to_json()) for certificate in certificates]
    document = {
        **given,
        "run": str(directory.path) if directory else None,
        "certificates": documents,
        "seconds": seconds,
    }
    text = certificates_text(documents)
    if directory is not None:
        kept = directory.write_result(
            "certify", document, given["options"] | {"of": given["technique"], "command": given["command"]}
        )
        document["file"] = str(kept)
        text += f"\n\nsaved  {kept}"
    held = all(d["holds"] for d in documents)
    return Outcome(document, text, ExitCode.DONE if held else ExitCode.CLAIM, directory, certificates)
