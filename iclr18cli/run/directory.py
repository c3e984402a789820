"""A run's directory: plain files that hold one training and everything measured on it later.

Opening one executes nothing from it and imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from iclr18cli import __version__
from iclr18cli.errors import UsageError, UserError
from iclr18cli.run import metrics, process
from iclr18cli.run.atomic import cannot_write, digest, replacing, storable, write_json, write_toml
from iclr18cli.run.environment import now

SCHEMA = "iclr18.run/1"
INFO, CONFIG, METRICS, LOG, LOCK = "run.json", "config.toml", "metrics.jsonl", "log.txt", ".lock"
STATUSES = ("running", "done", "interrupted", "failed")
OPTIONAL = {
    "metrics": (dict,),
    "settings": (dict,),
    "argv": (list,),
    "resumed": (list,),
    "seconds": (int, float),
    "seed": (int,),
}
"""Types of entries of run.json that may be missing."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = ("auto",)
"""Words that `--resume` gives a meaning of its own."""


class RunDirectory:
    """The files of one run. Reads them anew each time: another process may be writing.

    Args:
        path: The directory.
        writes: Whether this process may change it; of several ranks the first one does, and the others' calls that
            would write do nothing.
    """

    def __init__(self, path: str | Path, *, writes: bool = True):
        self.path, self.writes = Path(path), writes

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunDirectory) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    @property
    def info(self) -> dict[str, Any]:
        """The contents of run.json.

        Raises:
            UserError: It is missing, damaged, or of a schema this version does not read.
        """
        path = self.path / INFO
        try:
            info = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self._refuse(path, getattr(error, "strerror", None) or f"not JSON: {error}", error)
        if not isinstance(info, dict) or info.get("schema") != SCHEMA:
            seen = info.get("schema") if isinstance(info, dict) else type(info).__name__
            self._refuse(path, f"its schema reads {seen!r:.60}, this version knows {SCHEMA!r}")
        missing = [key for key in ("id", "technique", "status", "started") if not isinstance(info.get(key), str)]
        if missing or info["status"] not in STATUSES:
            self._refuse(path, f"no valid entry {missing[0] if missing else 'status'!r}")
        for key, kinds in OPTIONAL.items():
            if key in info and not isinstance(info[key], kinds):
                self._refuse(path, f"no valid entry {key!r}")
        return info

    @property
    def config(self) -> dict[str, Any]:
        """The contents of config.toml: the options the run was made with.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.path / CONFIG
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            self._refuse(path, getattr(error, "strerror", None) or f"not TOML: {error}", error)

    def trained_config(self) -> dict[str, Any]:
        """Return the contents of config.toml if they are those the run was made with.

        Raises:
            UserError: The file was changed after the run began, or is damaged.
        """
        config, info = self.config, self.info
        if digest(config) != info.get("config_sha256"):
            raise UserError(
                f"{self.path / CONFIG} was changed after the run began.",
                why="a run keeps its settings",
                fix=f"restore it, or start a new run: iclr18 {info['technique']} train --config FILE",
            )
        return config

    def _refuse(self, path: Path, why: str, error: Exception | None = None) -> NoReturn:
        raise UserError(
            f"{path} cannot be read.",
            why=why,
            fix=f"restore the file, or remove the run: iclr18 runs rm {self.path}",
        ) from error

    @property
    def status(self) -> str:
        """running, done, interrupted or failed; "lost": its process is gone; "broken": run.json cannot be read."""
        try:
            info = self.info
        except UserError:
            return "broken"
        if info["status"] == "running" and info.get("host") == socket.gethostname():
            pid = info.get("pid")
            if not isinstance(pid, int) or pid <= 0 or not process.is_alive(pid, info.get("pid_started")):
                return "lost"
        return info["status"]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, in the order they were written."""
        return metrics.read(self.path / METRICS)

    def update(self, **entries: Any) -> None:
        """Change entries of run.json."""
        if not self.writes:
            return
        write_json(self.path / INFO, self.info | entries)

    def write_json(self, relative: str | Path, value: Any) -> Path:
        """Write a JSON file of the run as a whole and return its path; numbers that are not finite become null."""
        return write_json(self.path / relative, value) if self.writes else self.path / relative

    def write_result(self, kind: str, value: Any, options: Mapping[str, Any], *, label: str = "") -> Path:
        """Keep what one call measured.

        Args:
            kind: Folder: "eval", "attack" or "certify".
            value: JSON-ready; "options" is added to a mapping that lacks it.
            options: What the call was asked for: the file's name is made from it, so that the same call replaces
                its earlier result and another one does not.
            label: Readable beginning of the name.

        Returns:
            The path of the file.
        """
        name = "-".join(part for part in (label, digest({"options": options})[:12]) if part)
        if isinstance(value, Mapping):
            value = {"options": options, **value}
        return self.write_json(Path(kind) / f"{name}.json", value)

    def results(self, kind: str) -> list[dict[str, Any]]:
        """Return the results of a kind that can be read, oldest first; each with its path under "file"."""
        found = []
        for path in sorted((self.path / kind).glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                value = json.loads(path.read_bytes())
            except ValueError:
                continue
            found.append({**(value if isinstance(value, dict) else {"value": value}), "file": str(path)})
        return found

    def figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure to plots/NAME.png as a whole and return its path."""
        if NAME.fullmatch(name) is None:
            raise ValueError(f"a figure's name must be letters, digits, '.', '_' and '-'; received {name!r}")
        path = self.path / "plots" / f"{name}.png"
        if not self.writes:
            return path
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
        return path

    def note(self, text: str) -> None:
        """Add a line with the time to log.txt."""
        if not self.writes:
            return
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {text}\n")
        except OSError as error:
            raise cannot_write(self.path / LOG, error) from error

    @classmethod
    def create(
        cls, root: str | Path, *, technique: str, config: Mapping[str, Any], seed: int, argv: Sequence[str] = (),
        plugin: str = "", name: str = "", out: str = "", command: str = "train", parent: str | None = None,
        settings: Mapping[str, Any] | None = None, launch: str = "",
    ) -> RunDirectory:  # fmt: skip
        """Make the directory of a new run; two processes that start at once never get the same one.

        Args:
            root: Folder of runs; the directory is named TECHNIQUE-DATE-NUMBER, counted up.
            config: Resolved options, kept in config.toml; keys without a value (None) are left out.
            name: Name inside `root` instead.
            out: Exact path instead, which must not exist or be empty.
            parent: Path of the run this one starts from.
            settings: Shared options that a resumed run keeps.
            launch: The launcher's name of the launch that made it, for a restart to find it.

        Raises:
            UserError: The place is taken, full or read-only. Nothing is left behind.
            UsageError: The name cannot be one, or both `name` and `out` are given.
        """
        if name and out:
            raise UsageError("--name and --out exclude each other.", fix="--out takes the whole path")
        if name and (NAME.fullmatch(name) is None or name in RESERVED):
            raise UsageError(f"A run cannot be called {name!r}.", fix="letters, digits, '.', '_' and '-'; not 'auto'")
        path = _claim(Path(root), technique, name, Path(out).expanduser() if out else None)
        run, values = cls(path), storable(config)
        try:
            write_toml(path / CONFIG, values)
            entries = {
                "schema": SCHEMA, "id": path.name, "technique": technique, "command": command, "plugin": plugin,
                "version": __version__, "status": "running", "reason": "", "argv": list(argv), "parent": parent,
                **owner(), "started": now(), "ended": None, "seconds": 0.0, "seed": seed,
                "config_sha256": digest(values), "settings": dict(settings or {}), "resumed": [], "metrics": {},
                "launch": launch,
            }  # fmt: skip
            write_json(path / INFO, entries)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run


def owner() -> dict[str, Any]:
    """Return the entries of run.json that say which process works on it."""
    return {"pid": os.getpid(), "pid_started": process.start_time(os.getpid()), "host": socket.gethostname()}


def _claim(root: Path, technique: str, name: str, out: Path | None) -> Path:
    """Make the directory by `mkdir`, which only one process can succeed in."""
    path = out or root / name
    try:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                out.mkdir()
            except FileExistsError:
                if not out.is_dir():
                    raise
                if any(out.iterdir()):
                    raise _taken(out) from None
            try:
                (out / LOCK).open("x").close()  # an empty directory that was there: one process gets it
            except FileExistsError:
                raise _taken(out) from None
            return out
        root.mkdir(parents=True, exist_ok=True)
        if name:
            try:
                path.mkdir()
            except FileExistsError:
                raise _taken(path) from None
            return path
        prefix = f"{technique}-{datetime.now():%Y%m%d}-"
        used = [entry.name.removeprefix(prefix) for entry in os.scandir(root) if entry.name.startswith(prefix)]
        number = max((int(text) for text in used if text.isdecimal()), default=0)
        while True:
            number += 1
            path = root / f"{prefix}{number:04d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise cannot_write(path if out else root, error) from error


def _taken(path: Path) -> UserError:
    return UserError(
        f"{path} is there already and not empty.",
        why="a run never writes into what another one made",
        fix="choose another --out or --name, or go on with it by --resume",
    )


def list_runs(root: str | Path) -> list[RunDirectory]:
    """Return the runs in a folder, oldest first; those that cannot be read have the status "broken"."""
    from iclr18cli.run.find import list_runs

    return list_runs(root)


def find_run(reference: str | Path, root: str | Path) -> RunDirectory:
    """Return the run that a path, a name, the beginning of a name, or `@last` means; see `run.find`."""
    from iclr18cli.run.find import find_run

    return find_run(reference, root)
