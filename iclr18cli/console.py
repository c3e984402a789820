"""Two streams: results on stdout, everything else on stderr. Colour and bars only on a terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from iclr18cli.errors import UserError

HEARTBEAT_SECONDS = 30.0
"""Where stderr is no terminal, progress is one line at most this often."""


class Progress(Protocol):
    """What a progress bar offers to a loop."""

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Count `n` more steps and show the last metrics."""


class Console:
    """Where a command talks: `quiet` drops progress and hints, `as_json` makes results one JSON document."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json

    def hint(self, text: str) -> None:
        """Say something helpful on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """Say on stderr what the user should not miss."""
        print(f"warning: {text}", file=sys.stderr)

    def result(self, document: Any, text: str | None = None) -> None:
        """Print a result: `document` as JSON with --json, otherwise `text`."""
        if self.as_json:
            print(json.dumps(plain(document), indent=2, allow_nan=False))
        elif text:
            print(text)

    @contextmanager
    def progress(self, total: int | None, label: str) -> Iterator[Progress]:
        """Show progress with rate, remaining time and the last metrics while the block runs."""
        if self.quiet:
            yield _Silent()
        elif sys.stderr.isatty():
            with _bar(total, label) as bar:
                yield bar
        else:
            yield _Heartbeat(total, label)


class _Silent:
    def advance(self, n: int = 1, **metrics: float) -> None:
        pass


class _Heartbeat:
    """One line every half minute, for logs of batch systems."""

    def __init__(self, total: int | None, label: str):
        self.total, self.label, self.done = total, label, 0
        self.metrics: dict[str, float] = {}
        self.start = self.spoken = time.monotonic()

    def advance(self, n: int = 1, **metrics: float) -> None:
        self.done += n
        if metrics:
            self.metrics = metrics
        now = time.monotonic()
        if now - self.spoken < HEARTBEAT_SECONDS:
            return
        self.spoken, rate = now, self.done / (now - self.start)
        left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate else ""
        print(
            f"{self.label}  {self.done}/{self.total or '?'}  {rate:.3g}/s{left}  {show_metrics(self.metrics)}",
            file=sys.stderr,
        )


@contextmanager
def _bar(total: int | None, label: str) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
               TextColumn("{task.fields[metrics]}"))  # fmt: skip
    with RichProgress(*columns, console=RichConsole(stderr=True), transient=True, refresh_per_second=5) as display:
        task = display.add_task(label, total=total, metrics="")

        class Bar:
            pending = 0
            drawn = time.monotonic()

            def advance(self, n: int = 1, **metrics: float) -> None:
                self.pending += n
                now = time.monotonic()
                if metrics or now - self.drawn > 0.1:
                    shown = {"metrics": show_metrics(metrics)} if metrics else {}
                    display.update(task, advance=self.pending, **shown)  # type: ignore[arg-type]
                    self.pending, self.drawn = 0, now

        yield Bar()


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> str:
    """Lay out a table as text: numbers to the right, coloured headings on a terminal.

    Example:
        >>> print(table(["name", "n"], [["a", 1], ["bcd", 20]]))
        name   n
        a      1
        bcd   20
    """
    cells = [[show(cell) for cell in row] for row in rows]
    widths = [
        max(len(heading), *(len(row[i]) for row in cells), 0) if cells else len(heading)
        for i, heading in enumerate(columns)
    ]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]

    def line(words: Sequence[str]) -> str:
        placed = (w.rjust(n) if r else w.ljust(n) for w, n, r in zip(words, widths, right, strict=True))
        return "  ".join(placed).rstrip()

    heading = line(columns)
    return "\n".join([*([title] if title else []), bold(heading), *(line(row) for row in cells)])


def bold(text: str) -> str:
    """Return the text in bold where stdout is a terminal that wants colour."""
    import os

    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def show(value: Any) -> str:
    """Write one value for a person: four significant digits, True as yes.

    Example:
        >>> show(0.123456), show(1437), show(True), show(None)
        ('0.1235', '1437', 'yes', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return show_metrics(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return str(value)


def labelled(label: str, texts: Sequence[str], *, width: int = 11) -> list[str]:
    """Lay out texts under a label, one a line.

    Example:
        >>> print("\\n".join(labelled("warning", ["first", "second"])))
          warning      first
                       second
    """
    return [f"  {label if i == 0 else '':<{width}}  {text}" for i, text in enumerate(texts)]


def show_metrics(metrics: Mapping[str, Any]) -> str:
    """Write metrics on one line: `loss 0.2512  rho 0.07`."""
    return "  ".join(f"{name} {show(value)}" for name, value in metrics.items())


def duration(seconds: float) -> str:
    """Write a time span for a person.

    Example:
        >>> duration(0.42), duration(75), duration(7300)
        ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> Any:
    """Return a JSON-ready copy: numpy and torch values as numbers, paths as text, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def complain(error: UserError) -> None:
    """Write an error as one line on stderr: what, why, fix."""
    parts = [f"error: {error.what}", error.why and f"({error.why})", error.fix and f"fix: {error.fix}"]
    print("  ".join(part for part in parts if part).replace("\n", " "), file=sys.stderr)
