"""The file of finished points: one line each, written as it is done, from which a stopped certification goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclr18cli.certify.randomized import ABSTAIN, Point
from iclr18cli.errors import UserError
from iclr18cli.run.atomic import cannot_write

COLUMNS = ("index", "label", "predicted", "radius", "correct", "nA", "n", "seconds")


class KeptPoints:
    """A TSV of points below a line of settings and a line of column names.

    Lines are appended and not renamed into place: what a crash leaves of the last line is dropped on the next start.

    Args:
        path: The file; None: nothing is kept.
        settings: JSON-ready; points of other settings are never mixed in.
        labels: Labels of the evaluated points, in order.
        first: Number of the first one.

    Raises:
        UserError: The file holds points of other settings, is no such file, or cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], labels: Sequence[int], first: int = 0):
        self.path, self.points, self.first = path, list[Point](), first
        self.header = f"# {json.dumps(dict(settings), sort_keys=True)}\n" + "\t".join(COLUMNS) + "\n"
        if path is None:
            return
        try:
            text = path.read_bytes().decode("ascii", errors="replace") if path.exists() else ""
            good = self._read(text, labels)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.truncate(good)
                file.seek(good)
                if not good:
                    file.write(self.header.encode())
        except OSError as error:
            raise cannot_write(path, error) from error

    def _read(self, text: str, labels: Sequence[int]) -> int:
        """Read the points up to the first line that is not whole; return the bytes that stay."""
        if self.header.startswith(text):  # a new file, or one that stopped in its first lines
            return 0
        if not text.startswith(self.header):
            raise UserError(
                f"{self.path} holds points of another certification.",
                why="its first line says other settings, another model or other data",
                fix="name another file, or delete this one",
            )
        good = len(self.header)
        for line in text[good:].splitlines(keepends=True):
            point = _parse(line)
            position = len(self.points)
            if point is None or position >= len(labels):
                break
            if (point.index, point.label) != (self.first + position, labels[position]):
                break
            self.points.append(point)
            good += len(line)
        return good

    def add(self, point: Point) -> None:
        """Append one finished point.

        Raises:
            UserError: The file cannot be written.
        """
        self.points.append(point)
        if self.path is None:
            return
        values = {name: getattr(point, name) for name in COLUMNS} | {"seconds": round(point.seconds, 4)}
        words = (repr(int(value) if isinstance(value, bool) else value) for value in values.values())
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write("\t".join(words) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _parse(line: str) -> Point | None:
    """Return the point of one line, or None where it is not whole."""
    words = line.rstrip("\n").split("\t")
    if not line.endswith("\n") or len(words) != len(COLUMNS):
        return None
    try:
        index, label, predicted, correct, nA, n = (int(words[i]) for i in (0, 1, 2, 4, 5, 6))
        point = Point(
            index=index, label=label, predicted=predicted, radius=float(words[3]), nA=nA, n=n, seconds=float(words[7])
        )
    except ValueError:
        return None
    whole = 0 <= nA <= n and correct == int(point.correct) and (point.radius > 0) == (predicted != ABSTAIN)
    return point if whole else None
