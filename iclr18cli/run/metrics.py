"""metrics.jsonl: one JSON object per line, appended while a run goes on, cut back when it resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from iclr18cli.console import plain
from iclr18cli.run.atomic import cannot_write


class MetricsFile:
    """The open record of a run.

    Args:
        path: metrics.jsonl.
        size: Bytes to keep of what is there, as a checkpoint noted them; None: all whole lines.
    """

    def __init__(self, path: Path, size: int | None = None):
        self.path = path
        try:
            self._file: IO[bytes] = path.open("ab")
            self._file.truncate(_whole_lines(path.read_bytes()[:size]))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it has left this process when the call returns. Numbers that are not finite become null."""
        try:
            self._file.write((json.dumps(plain(line), allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self._file.tell()

    def sync(self) -> int:
        """Put everything on the disk and return the size in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self.size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NoMetrics(MetricsFile):
    """The record of a rank that does not write."""

    size = 0

    def __init__(self) -> None:
        pass

    def append(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> int:
        """Do nothing."""
        return 0

    def close(self) -> None:
        """Do nothing."""


def _whole_lines(data: bytes) -> int:
    """Return the length of `data` up to its last line end: kill -9 may have cut the last line."""
    return data.rfind(b"\n") + 1


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a cut last line is left out, a missing file has none.

    Raises:
        UserError: A line in the middle is not JSON.
    """
    from iclr18cli.errors import UserError

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for number, text in enumerate(data[: _whole_lines(data)].splitlines(), 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError(f"a line must be an object with a step; received {text.decode(errors='replace'):.40}")
        except ValueError as error:
            raise UserError(
                f"{path} is damaged at line {number}.", why=str(error), fix=f"delete line {number} of the file"
            ) from error
        lines.append(line)
    return lines
