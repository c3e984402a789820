"""Metrics between two lines of metrics.jsonl: kept where they were computed, brought over in one transfer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iclr18cli.errors import UserError
from iclr18cli.launch import ALONE, World

LOSS = "loss"
"""The metric that stops a run when it is NaN or infinite."""


class Interval:
    """Values of the steps since the last line. Nothing waits for the device, or for another rank, before `settle`.

    Args:
        world: The N ranks that log the same metrics, each of its share of the batch.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self._shares: list[float] = []
        self.entries: list[tuple[int, str, float | Tensor]] = []
        self.last_finite: tuple[int, float] | None = None
        self._settled = 0

    def add(self, step: int, metrics: Mapping[str, float | Tensor], share: float = 1.0) -> None:
        """Keep the metrics of a step: numbers, or tensors of one element, which must not be written to afterwards.

        Args:
            step: Its number.
            metrics: Means over this rank's share of the batch.
            share: Weight of that share; those of the N ranks sum to N.

        Raises:
            ValueError: A tensor has more than one element.
        """
        self._shares += [share] * len(metrics)
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                if value.ndim:
                    if value.numel() != 1:
                        raise ValueError(f"metric {name!r} must be one number; received shape {tuple(value.shape)}")
                    value = value.reshape(())
                self.entries.append((step, name, value.detach()))
            else:
                self.entries.append((step, name, float(value)))

    def settle(self) -> None:
        """Turn tensors into numbers, one transfer per device and type (as a rule: one), and check the loss.

        Raises:
            UserError: A loss is NaN or infinite; names its step and the last finite loss before it.
        """
        fresh = self.entries[self._settled :]
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for number, (_, _, value) in enumerate(fresh, self._settled):
            if isinstance(value, Tensor):
                groups[value.device, value.dtype].append(number)
        for numbers in groups.values():
            values = torch.stack([self.entries[number][2] for number in numbers]).tolist()  # type: ignore[misc]
            for number, value in zip(numbers, values, strict=True):
                step, name, _ = self.entries[number]
                self.entries[number] = (step, name, float(value))
        self._average()
        for step, name, value in self.entries[self._settled :]:
            if name == LOSS:
                if not math.isfinite(value):
                    raise self._stopped(step, float(value))
                self.last_finite = (step, float(value))
        self._settled = len(self.entries)

    def _average(self) -> None:
        """Replace what this rank logged by the mean over the global batch."""
        shares, self._shares = self._shares, []
        if self.world.size == 1 or not shares:
            return
        fresh = self.entries[self._settled :]
        weighted = [float(value) * share if share else 0.0 for (_, _, value), share in zip(fresh, shares, strict=True)]
        total = self.world.total(torch.tensor(weighted, dtype=torch.float64)) / self.world.size
        for number, ((step, name, _), value) in enumerate(zip(fresh, total.tolist(), strict=True), self._settled):
            self.entries[number] = (step, name, value)

    def means(self) -> dict[str, float]:
        """Settle, return the mean of each metric over the steps that logged it, and begin anew."""
        self.settle()
        values: dict[str, list[float]] = defaultdict(list)
        for _, name, value in self.entries:
            values[name].append(float(value))
        self.entries, self._settled = [], 0
        return {name: _mean(numbers) for name, numbers in values.items()}

    def state(self) -> dict[str, Any]:
        """Settle and return what a resumed run needs to write the same line."""
        self.settle()
        return {"entries": list(self.entries), "last_finite": self.last_finite}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.entries, self._shares = [(step, name, value) for step, name, value in state["entries"]], []
        self.last_finite = state["last_finite"] and tuple(state["last_finite"])
        self._settled = len(self.entries)

    def _stopped(self, step: int, value: float) -> UserError:
        before = "no step before it had a finite loss"
        if self.last_finite is not None:
            before = f"the last finite loss was {self.last_finite[1]!r} at step {self.last_finite[0]}"
        return UserError(
            f"The loss became {'NaN' if math.isnan(value) else 'infinite'} at step {step}.",
            why=before,
            fix="a smaller learning rate, or a look at the data; no checkpoint was written after that step",
        )


def number(value: float | Tensor) -> float:
    """Return a metric as a number, waiting for its device if it is a tensor."""
    return float(value.detach() if isinstance(value, Tensor) else value)


def _mean(numbers: list[float]) -> float:
    # fsum is exact, so that it does not matter how a checkpoint divided the interval.
    if all(map(math.isfinite, numbers)):
        return math.fsum(numbers) / len(numbers)
    return sum(numbers) / len(numbers)
