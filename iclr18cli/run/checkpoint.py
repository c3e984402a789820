"""Checkpoints: whole or not there, checked when read, the one before kept.

last.pt is the newest; last-1.pt the one before, used when last.pt is damaged; best.pt the best one; phase-0.pt the end
of an earlier phase, for a resume in a later one. Of several ranks the first keeps what all share, each other one what
is its own: last.rank-1.pt beside last.pt.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from iclr18cli.errors import UserError
from iclr18cli.launch import ALONE, World
from iclr18cli.run.atomic import cannot_write, replacing, sync_folder

FORMAT = "iclr18.checkpoint/1"
LAST, PREVIOUS, BEST, FRESH = "last.pt", "last-1.pt", "best.pt", "last.new.pt"


class DamagedError(Exception):
    """A checkpoint that is not whole."""


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
        folder: Made with the first checkpoint.
        config_sha256: Digest of the run's configuration; a checkpoint of another one is refused.
        world: The ranks that save and load together, each calling the same methods.
    """

    def __init__(self, folder: Path, config_sha256: str, world: World = ALONE):
        self.folder, self.config_sha256, self.world = folder, config_sha256, world
        self._checked = False

    def _own(self, name: str, rank: int | None = None) -> Path:
        """Return where a rank, by default this one, keeps its part of a checkpoint."""
        rank = self.world.rank if rank is None else rank
        return self.folder / (name.replace(".pt", f".rank-{rank}.pt") if rank else name)

    def save(self, state: Mapping[str, Any], *, best: bool = False) -> None:
        """Write last.pt, and best.pt if this state is the best one; on an error the older ones are untouched.

        Raises:
            UserError: The disk is full or read-only.
            TypeError: A value in `state` could not be read back without executing code.
        """
        last, fresh = self._own(LAST), self._own(FRESH)
        self._write(fresh, {**state, "ranks": self.world.size})
        if self.world.first:
            self.world.wait()  # the parts of the others are there before the file that makes them valid
        try:
            if best and self.world.first:
                # Before last.pt, so that a best.pt is never older than the best value that last.pt tells of.
                _link(fresh, self.folder / BEST)
            if last.exists():
                os.replace(last, self._own(PREVIOUS))
            os.replace(fresh, last)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise cannot_write(last, error) from error
        sync_folder(self.folder)
        if not self.world.first:
            self.world.wait()

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Write best.pt alone."""
        if self.world.first:
            self._write(self.folder / BEST, {**state, "ranks": self.world.size})

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        if not self._checked:
            refuse_code(state, "checkpoint")
            self._checked = True
        with replacing(path) as file:
            try:
                torch.save({"format": FORMAT, "config_sha256": self.config_sha256, **state}, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk: torch's writer complains of its own position
                    raise error.__context__ from None
                raise

    def keep_phase(self, number: int) -> None:
        """Keep last.pt, which holds the end of a phase, from being replaced by the next one."""
        last, kept = self._own(LAST), self._own(f"phase-{number}.pt")
        if last.exists():
            try:
                _link(last, kept)
            except OSError as error:
                raise cannot_write(kept, error) from error

    def load_last(self) -> tuple[dict[str, Any] | None, str]:
        """Return the newest checkpoint that is whole and a warning if it is not the very newest; None: there is none.

        Raises:
            UserError: None of those there can be read, or they belong to another configuration.
        """
        with suppress(OSError):
            self._own(FRESH).unlink()  # of a process that was killed between two renames
        state, warning = self._load_newest() if self.world.first else (None, "")
        found, warning = self.world.broadcast((state is not None, warning))
        if not found:
            return None, ""
        if state is None:
            state = self._read(self.folder / LAST)  # the first rank has just read it
        return self._with_parts(state, (LAST, PREVIOUS)), warning

    def _load_newest(self) -> tuple[dict[str, Any] | None, str]:
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if not last.exists() and not previous.exists():
            return None, ""
        try:
            return self._read(last), ""
        except DamagedError as error:
            reason = str(error)
        try:
            state = self._read(previous)
        except DamagedError as error:
            raise _damaged(last, reason) from error
        # The next save must not push the damaged file over the whole one.
        os.replace(previous, last)
        step = state["position"]["step"]
        return state, f"{last} cannot be used ({reason}); going on from the checkpoint before it, step {step}"

    def load(self, name: str) -> dict[str, Any]:
        """Return a checkpoint by its file's name.

        Raises:
            UserError: It is missing or damaged, or belongs to another configuration.
        """
        return self._with_parts(self.shared(name), (name,))

    def shared(self, name: str) -> dict[str, Any]:
        """Return a checkpoint without what belongs to each rank alone; errors as for `load`."""
        try:
            return self._read(self.folder / name)
        except DamagedError as error:
            raise _damaged(self.folder / name, str(error)) from error

    def _with_parts(self, state: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """Put what belongs to this rank in the place of what belongs to the first one.

        With another number of ranks than the checkpoint's, what ranks track as their own is handed over of all of them.
        """
        before, rank = state.get("ranks", 1), self.world.rank
        if before == self.world.size == 1:
            return state
        memory = dict(state["memory"])
        if 0 < rank < before:
            memory |= {"objects": memory["objects"]} | {
                name: value for name, value in self._part(state, names, rank)["memory"].items() if name != "objects"
            }
        memory["fresh"] = rank >= before
        if before != self.world.size and memory.get("own"):
            parts = [state, *(self._part(state, names, other) for other in range(1, before))]
            memory["own"] = [part["memory"]["own"] for part in parts]
        return state | {"memory": memory}

    def _part(self, state: Mapping[str, Any], names: tuple[str, ...], rank: int) -> dict[str, Any]:
        """Return what a rank after the first saved at the step of a checkpoint, and keep it as that rank's newest."""
        why = "it is missing"
        for name in names:
            path = self._own(name, rank)
            try:
                part = self._read(path)
            except DamagedError as error:
                why = str(error)
                continue
            if part["position"]["step"] == state["position"]["step"]:
                if name == PREVIOUS and rank == self.world.rank:
                    os.replace(path, self._own(LAST))
                return part
            why = f"it is of step {part['position']['step']}"
        raise UserError(
            f"The part of rank {rank} of the checkpoint at step {state['position']['step']} cannot be used.",
            why=f"{self._own(names[0], rank)}: {why}",
            fix="every machine must see the run's directory; without that file, start a new run",
        )

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            # torch's reader does not look at the checksums that its writer makes.
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise DamagedError(f"wrong checksum of {broken}")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise DamagedError("it is missing") from error
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.PickleError, zipfile.BadZipFile) as error:
            raise DamagedError(str(error).split("\n")[0][:200] or type(error).__name__) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise DamagedError(f"it is not of the format {FORMAT}")
        if state.get("config_sha256") != self.config_sha256:
            raise UserError(
                f"The checkpoint {path} belongs to another configuration than this run's.",
                why=f"its sha256 is {str(state.get('config_sha256'))[:12]}…, the run's {self.config_sha256[:12]}…",
                fix="restore config.toml and run.json, or start a new run",
            )
        return state


PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device}


def refuse_code(value: Any, where: str) -> None:
    """Raise TypeError unless a value can be read back by `weights_only`, that is, without executing code."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            refuse_code(key, where)
            refuse_code(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for number, item in enumerate(value):
            refuse_code(item, f"{where}[{number}]")
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where} must be a tensor, a number, text, or a plain collection of them; received {type(value).__name__}"
        )


def _link(source: Path, target: Path) -> None:
    """Let `target` name the same file as `source`; a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"The checkpoint {path} cannot be used, nor is there a whole one before it.",
        why=why,
        fix=f"restore it, or delete {path.parent} to train this run from its start by --resume",
    )
