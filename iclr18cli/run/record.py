"""What a training writes down: means per interval, single lines, and what observers are told of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from iclr18cli.launch import ALONE, World
from iclr18cli.run.interval import Interval
from iclr18cli.run.metrics import MetricsFile

RESERVED = ("step", "epoch", "time", "split")


class Record:
    """The metrics of one run.

    Args:
        file: metrics.jsonl, open.
        every: Steps between two lines of means.
        seconds: What the run took before this process.
        told: Called with (step, metrics) after each line.
        world: The ranks whose means make a line.
    """

    def __init__(
        self, file: MetricsFile, *, every: int, seconds: float, told: Callable[[int, dict[str, float]], None],
        world: World = ALONE,
    ):  # fmt: skip
        self.file, self.every, self._told = file, every, told
        self.interval = Interval(world)
        self._started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Seconds the run has taken, those before an interruption included up to its last checkpoint."""
        return time.monotonic() - self._started

    def flush(self, step: int, epoch: int) -> dict[str, float]:
        """Write and return the means since the last time; nothing was logged: no line.

        Raises:
            UserError: A loss is not finite, or the disk is full.
        """
        means = self.interval.means()
        if means:
            self.write("train", means, step, epoch)
        return means

    def write(self, split: str, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        """Write one line now.

        Raises:
            ValueError: A metric has the name of a column.
        """
        for name in RESERVED:
            if name in metrics:
                raise ValueError(f"a metric must not be called {', '.join(RESERVED)}; received {name!r}")
        line = {"step": step, "epoch": epoch, "time": round(self.seconds, 3), "split": split}
        self.file.append({**line, **metrics})
        self._told(step, dict(metrics))
