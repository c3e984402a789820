"""Where a training is, and how it gets on: steps, checkpoints, signals, and the way back to a checkpoint.

A phase is one call of `run.epochs` or `run.steps`; phases are counted in the order of the calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from iclr18cli.errors import Interrupted, UserError
from iclr18cli.launch import World
from iclr18cli.run.agreement import Agreement
from iclr18cli.run.checkpoint import Checkpoints
from iclr18cli.run.memory import Memory, snapshot
from iclr18cli.run.record import Record
from iclr18cli.run.signals import Signals
from iclr18cli.settings import TrainSettings

T = TypeVar("T")
Progress = Callable[[int | None, str], AbstractContextManager[Any]]

REDRAW_SECONDS = 0.1

REST_SECONDS = 1.0
"""A best state that comes sooner after a checkpoint stays in memory: small networks have many epochs per second."""


@dataclass
class Position:
    """How far a training has come.

    Args:
        phase: Number of the current phase, from 0; -1 before the first.
        done: Steps done in it.
        finished: It is over.
        step: Number of the current step in the whole run, from 1.
        epoch: Number of the current epoch in the whole run, from 1.
        epochs_before: Epochs in earlier phases.
        best: The best value so far.
    """

    phase: int = -1
    done: int = 0
    finished: bool = True
    step: int = 0
    epoch: int = 0
    epochs_before: int = 0
    best: float | None = None


class Phases:
    """Drives the loops of one run.

    Args:
        saved: The checkpoint to go on from. Until its phase is reached the run is `replaying`.
    """

    def __init__(
        self, settings: TrainSettings, memory: Memory, record: Record, checkpoints: Checkpoints, signals: Signals,
        progress: Progress, saved: Mapping[str, Any] | None, world: World,
    ):  # fmt: skip
        self._world, self._agreement = world, Agreement(world)
        self.settings, self.memory, self.record, self.checkpoints = settings, memory, record, checkpoints
        self.signals, self.progress, self._saved = signals, progress, saved
        self.at = Position()
        self.inside = self.stopping = self.is_best = False
        self._best_state: dict[str, Any] | None = None
        self._saved_at = time.monotonic()

    @property
    def replaying(self) -> bool:
        """The phase that the checkpoint is in has not been reached yet."""
        return self._saved is not None

    def iterate(self, total: int, label: str, item: Callable[[int], T]) -> Iterator[T]:
        """Yield `item(done)` for each step of a phase that is not done yet, and take care of everything around it."""
        if not self._enter():
            return
        at, record, every = self.at, self.record, self.settings.checkpoint_every
        done = at.done
        self.inside, self.stopping = True, False
        self.signals.install()
        try:
            with self.progress(total, label) as bar:
                bar.advance(done)
                waiting, drawn = 0, time.monotonic()
                if done >= total:
                    self.save(finished=True)
                while not at.finished:
                    at.step += 1
                    yield item(done)
                    at.done = done = done + 1
                    waiting += 1
                    finished = done >= total or self.stopping
                    means = record.flush(at.step, at.epoch) if finished or at.step % record.every == 0 else None
                    clock = time.monotonic()
                    if means or finished or clock - drawn > REDRAW_SECONDS:
                        bar.advance(waiting, **(means or {}))
                        waiting, drawn = 0, clock
                    rest = min(every, REST_SECONDS) if self.is_best else every
                    due = clock - self._saved_at >= rest
                    save, signal = self._agreement.ask(save=due, signal=self.signals.received)
                    if finished or save or signal:
                        self.save(finished=finished)
                        if signal:
                            break
                    elif self.is_best:
                        self.is_best, self._best_state = False, snapshot(self._state())
            signal = self._agreement.settle(self.signals.received)
            if signal:
                raise Interrupted(signal, self.signals.hint)
        finally:
            self.inside = False
            self.signals.restore()
            if self._world.size == 1:  # several ranks save together or not at all
                with suppress(UserError):  # a full disk, which is then what ended the phase
                    self.write_best()

    def _enter(self) -> bool:
        """Count a phase; False: it was over in an earlier process."""
        if self.at.phase < 0 and self._saved is None:
            self.memory.part_ways()
        if self.inside:
            raise RuntimeError("phases of a run follow one another; received a second one inside the first")
        if not self.at.finished:
            raise RuntimeError("a phase that another one follows must be ended by run.stop(), not by break")
        number = self.at.phase + 1
        if self._saved is None:
            if number:
                self.checkpoints.keep_phase(number - 1)
            self.at.phase, self.at.done, self.at.finished, self.at.epochs_before = number, 0, False, self.at.epoch
            return True
        if number < self._saved["position"]["phase"]:
            self._restore(self.checkpoints.load(f"phase-{number}.pt"))
            return False
        saved, self._saved = self._saved, None
        self._restore(saved)
        return not self.at.finished

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state["position"].items():
            setattr(self.at, name, value)
        self.record.interval.load(state["interval"])
        self.memory.restore(state["memory"])

    def save(self, *, finished: bool) -> None:
        """Write a checkpoint; a loss that is not finite stops the run before.

        Args:
            finished: The current phase is over.
        """
        self.at.finished = finished
        state = self._state()  # first of all: a loss that is not finite stops the run here
        self.record.file.sync()
        if self.is_best:
            self._best_state = None
        self.write_best()  # before last.pt tells of its value
        self.checkpoints.save(state, best=self.is_best)
        self.is_best = False
        self._saved_at = time.monotonic()

    def write_best(self) -> None:
        """Write the best state if it still waits in memory: it is newer than last.pt, so it becomes that as well."""
        if self._best_state is not None:
            self.record.file.sync()
            self.checkpoints.save(self._best_state, best=True)
            self._best_state = None

    def _state(self) -> dict[str, Any]:
        return {
            "interval": self.record.interval.state(),
            "position": asdict(self.at),
            "metrics_size": self.record.file.size,
            "seconds": self.record.seconds,
            "memory": self.memory.capture(),
        }

    def best(self, value: float, *, lower: bool) -> bool:
        """Say whether a value is the best so far, and mark this step's checkpoint if so; NaN never is."""
        best = self.at.best
        if value != value or not (best is None or (value < best if lower else value > best)):
            return False
        self.at.best, self.is_best = value, self.inside
        if not self.inside and not self.replaying:
            # Outside of a phase last.pt must stay what it is, its end: what follows is done again on resume.
            self.checkpoints.save_best(self._state())
        return True


@contextmanager
def no_progress(total: int | None, label: str) -> Iterator[Any]:
    """Show nothing."""

    class Silent:
        def advance(self, n: int = 1, **metrics: float) -> None:
            pass

    yield Silent()
