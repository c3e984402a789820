"""Which run is meant: a path, a name, the beginning of a name, `@last`, or the one to go on with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.run.atomic import digest
from iclr18cli.run.directory import CONFIG, INFO, METRICS, RunDirectory

TRACES = (INFO, CONFIG, METRICS, "checkpoints")
"""A folder with one of these is a run, if perhaps a broken one."""
LAST = "@last"


def list_runs(root: str | Path) -> list[RunDirectory]:
    """Return the runs in a folder, oldest first; those that cannot be read have the status "broken".

    Raises:
        UserError: The folder cannot be read.
    """
    root = Path(root)
    try:
        folders = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"The folder of runs {root} cannot be read.", why=error.strerror or str(error)) from error
    runs = [RunDirectory(path) for path in folders if any((path / trace).exists() for trace in TRACES)]
    return sorted(runs, key=lambda run: (_started(run), run.path.name))


def _started(run: RunDirectory) -> str:
    """Return when a run started, as text that sorts; broken runs come first."""
    try:
        return run.info["started"]
    except UserError:
        return ""


def find_run(reference: str | Path, root: str | Path) -> RunDirectory:
    """Return the run that a reference means.

    Args:
        reference: A path; a name in `root`; the beginning of one name there; or `@last`, the newest that can be read.
        root: Folder of runs.

    Raises:
        UserError: There is no such run.
        UsageError: Several names begin like this.
    """
    text = str(reference)
    path = Path(text).expanduser()
    for place in (path, Path(root) / text) if text else ():
        if place.is_dir() and any((place / trace).exists() for trace in TRACES):
            return RunDirectory(place)
    runs = list_runs(root)
    where = f"looked in {root}, which holds {len(runs) or 'no'} run{'s' if len(runs) != 1 else ''}"
    if text == LAST:
        readable = [run for run in runs if run.status != "broken"]
        if readable:
            return readable[-1]
        raise UserError("There is no run yet.", why=where, fix="train one, or name its folder with --runs-dir")
    names = {run.path.name: run for run in runs}
    begun = sorted(name for name in names if text and name.startswith(text))
    if len(begun) == 1:
        return names[begun[0]]
    if begun:
        shown = ", ".join(begun[:5]) + (f" and {len(begun) - 5} more" if len(begun) > 5 else "")
        raise UsageError(f"'{text}' may mean {len(begun)} runs: {shown}.", fix="write more of the name")
    if path.exists():
        raise UserError(f"{path} is not a run.", why=f"it has no {INFO}", fix="name a directory that a training made")
    near = did_you_mean(text, [*names, LAST]) if names else "train one, or name its folder with --runs-dir"
    if len(names) > 5 and near.startswith("One of"):  # all of them would fill the screen
        near = "iclr18 runs list"
    raise UserError(f"There is no run '{text}'.", why=where, fix=near)


def relaunched(root: str | Path, launch: str, *, out: str = "") -> RunDirectory | None:
    """Return the newest run that a launch made, for its processes that were started again; None: there is none."""
    place = Path(out).expanduser() if out else None
    runs = list_runs(root) if place is None else [RunDirectory(place)] if (place / INFO).exists() else []
    for run in reversed(runs):
        if run.status != "broken" and launch and run.info.get("launch") == launch:
            return run
    return None


def resumable(
    root: str | Path, technique: str, config: Mapping[str, Any], seed: int, *, name: str = "", out: str = ""
) -> RunDirectory | None:
    """Return the newest unfinished run of a technique with this configuration and seed; None: there is none.

    A run that another process is working on does not count. With `name` or `out` only that directory is looked at.
    """
    if name or out:
        place = Path(out).expanduser() if out else Path(root) / name
        runs = [RunDirectory(place)] if (place / INFO).exists() else []
    else:
        runs = list_runs(root)
    wanted = (technique, digest(config), seed)
    for run in reversed(runs):
        if run.status in ("interrupted", "failed", "lost"):
            info = run.info
            if (info["technique"], info.get("config_sha256"), info.get("seed")) == wanted:
                return run
    return None
