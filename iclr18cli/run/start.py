"""Starting a run and going on with one: device, directory, seeds, checks."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclr18cli import device as devices
from iclr18cli import launch
from iclr18cli.errors import UserError
from iclr18cli.paths import runs_root
from iclr18cli.run import process
from iclr18cli.run.atomic import digest
from iclr18cli.run.checkpoint import Checkpoints
from iclr18cli.run.directory import INFO, LOCK, RunDirectory, owner
from iclr18cli.run.environment import environment, now
from iclr18cli.run.find import resumable as resumable
from iclr18cli.run.loop import Observer, Progress, Run
from iclr18cli.settings import TrainSettings

KEPT = ("precision", "log_every", "device")
"""Shared options that a resumed run takes over from its beginning, because they decide its bits."""
logger = logging.getLogger("iclr18")


def open_run(
    technique: str, config: Mapping[str, Any], settings: TrainSettings, *, root: str | Path | None = None,
    argv: Sequence[str] = (), plugin: str = "", command: str = "train", parent: str | None = None,
    progress: Progress | None = None, observer: Observer | None = None,
) -> Run:  # fmt: skip
    """Start a run: choose the device, make the directory, seed everything.

    Args:
        technique: Its name; the directory's begins with it.
        config: Resolved options of the technique, kept in config.toml.
        settings: Shared options.
        root: Folder of runs; by default `--runs-dir`, $ICLR18_RUNS, ./runs.
        argv, plugin, command, parent: Kept in run.json.
        progress: `(total, label) -> context manager` whose value has `.advance(n, **metrics)`.
        observer: Called as `observer(event, run=RunInfo, …)` with run_started, run_logged, run_finished.

    Raises:
        UserError: The device is missing, or the directory cannot be made. Nothing is left behind.
    """
    device = devices.choose(settings.device)
    devices.check_precision(device, settings.precision)
    world, directory = launch.world(), None
    if world.first:
        directory = RunDirectory.create(
            runs_root(root or settings.runs_dir), technique=technique, config=config, seed=settings.seed, argv=argv,
            plugin=plugin, name=settings.name, out=settings.out, command=command, parent=parent,
            settings={name: getattr(settings, name) for name in KEPT}, launch=launch.launch_id(),
        )  # fmt: skip
    directory = seen_by_all(world, directory)
    try:
        lock = process.lock(directory.path / LOCK) if world.first else None
        directory.write_json(
            "env.json", environment(devices.describe(device)) | {"argv": list(argv), "ranks": world.size}
        )
        directory.note(f"started: {' '.join(argv) or technique}")
        devices.seed_everything(settings.seed)
        checkpoints = Checkpoints(directory.path / "checkpoints", directory.info["config_sha256"], world)
        run = Run(
            directory, settings, device, checkpoints=checkpoints, lock=lock, resumed=False, saved=None,
            progress=progress, observer=observer, world=world,
        )  # fmt: skip
    except BaseException:
        if world.first:
            shutil.rmtree(directory.path, ignore_errors=True)
        raise
    run.tell("run_started")
    return run


def resume_run(
    directory: RunDirectory, settings: TrainSettings, *, progress: Progress | None = None,
    observer: Observer | None = None,
) -> Run:  # fmt: skip
    """Go on with an unfinished run from its last checkpoint, with the same bits as if it had not stopped.

    Seed, precision and log interval are the run's own; so is the device unless `settings` names one.

    Raises:
        UserError: The run is done, another process works on it, or a file of it is damaged.
    """
    world = launch.world()
    info, status = directory.info, directory.status
    if status == "done":
        raise UserError(f"{directory.path} is done.", fix="start a new run, or open this one with eval")
    lock = None if status == "running" or not directory.writes else process.lock(directory.path / LOCK)
    if lock is None and directory.writes:
        who = f"process {info.get('pid')} on {info.get('host')}" if status == "running" else "another process"
        raise UserError(
            f"{directory.path} is being worked on by {who}.",
            why="a run has one writer",
            fix='wait for it or stop it; if that machine is gone, write "status": "interrupted" into run.json',
        )
    try:
        config_sha256 = digest(directory.trained_config())
        kept = {name: value for name, value in info.get("settings", {}).items() if name in KEPT}
        if settings.device != "auto":
            kept.pop("device", None)
        settings = dataclasses.replace(settings, seed=info.get("seed", settings.seed), **kept)
        device = devices.choose(settings.device)
        devices.check_precision(device, settings.precision)
        checkpoints = Checkpoints(directory.path / "checkpoints", config_sha256, world)
        for leftover in directory.path.rglob(".*.tmp") if directory.writes else ():
            leftover.unlink(missing_ok=True)  # a process was killed while it wrote this
        saved, warning = checkpoints.load_last()
        if saved and saved.get("ranks", 1) != world.size:
            warning = (warning and f"{warning}; ") + (
                f"the run goes on with {world.size} process{'es' if world.size > 1 else ''} instead of "
                f"{saved.get('ranks', 1)}: the same training, but not the same bits"
            )
        where = f"from step {saved['position']['step']}" if saved else "from the start: there is no checkpoint"
        directory.note(f"resumed {where}")
        if warning and world.first:
            logger.warning("warning: %s", warning)
            directory.note(f"warning: {warning}")
        directory.update(status="running", reason="", ended=None, resumed=[*info.get("resumed", []), now()], **owner())
        devices.seed_everything(settings.seed)
        run = Run(
            directory, settings, device, checkpoints=checkpoints, lock=lock, resumed=True, saved=saved,
            progress=progress, observer=observer, world=world,
        )  # fmt: skip
    except BaseException:
        if lock is not None:
            lock.close()
        raise
    run.tell("run_started")
    return run


def seen_by_all(world: launch.World, directory: RunDirectory | None) -> RunDirectory:
    """Return the first rank's run directory on every rank; only the first one may write it.

    Raises:
        UserError: A rank on another machine does not see it.
    """
    path = world.broadcast(None if directory is None else directory.path.resolve())
    assert path is not None
    if directory is not None:
        return directory
    seen = RunDirectory(path, writes=False)
    if not (path / INFO).exists():
        raise UserError(
            f"Rank {world.rank} does not see {path}.",
            why="all ranks read the run that the first one writes",
            fix="a folder that every machine sees, by --runs-dir or --out",
        )
    return seen
