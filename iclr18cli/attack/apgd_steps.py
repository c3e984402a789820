"""How Auto-PGD moves and when it changes its step: halving for linf and l2, sparsity for l1.

S examples still in the batch · X the axes of one input · D coordinates
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from iclr18cli.attack.pgd import steepest
from iclr18cli.attack.survivors import Survivors
from iclr18cli.attack.threat import Threat, per_example

MOMENTUM = 0.75
"""Weight of the gradient step against the last movement (Croce and Hein 2020, section 3)."""

RHO = 0.75
"""Share of steps between two checkpoints that must raise the objective, or the step is halved (ibid.)."""

FIRST_SHARE, SPARSER, SHRINK, SHORTEST = 0.2, 1.5, 1.5, 10.0
"""l1: share of coordinates the first steps move; by how much later steps are sparser than the best point; by how much
a step shrinks at a checkpoint; how many times shorter than eps it may become (Croce and Hein 2021)."""

STILL_DENSE = 0.95
"""l1: a best point with fewer nonzeros than this share of those at the last checkpoint starts again with full steps."""


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which step sizes are reconsidered (Croce and Hein 2020, section 3).

    w_j = ceil(p_j * steps) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), in whole
    hundredths, so that no rounding moves a checkpoint.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, share, found = 0, 22, []
    while share <= 100:
        found.append(-(-share * steps // 100))
        before, share = share, share + max(share - before - 3, 6)
    return sorted(set(found))


@dataclass
class Path:
    """Where an ascent stands, one row per example in its batch; `best_gradient` is that at the best point."""

    z: Tensor
    before: Tensor
    value: Tensor
    gradient: Tensor
    best_gradient: Tensor

    def at(self, keep_S: Tensor) -> Path:
        """Return the path at some of the rows."""
        return _rows(self, keep_S)


@dataclass
class Halving:
    """The steps of linf and l2, with what their checkpoints look at.

    `since` counts steps since the last checkpoint, `rises` those that raised the value; `checked` is the best value
    at that checkpoint, `halved` whether the step was halved there.
    """

    length: Tensor
    rises: Tensor
    checked: Tensor
    halved: Tensor
    since: int = 0

    @classmethod
    def first(cls, run: Survivors, threat: Threat, dense: bool) -> Halving:
        """Return the rule before the first step; `dense`: the start does not tell how sparse a step should be."""
        zero_S, true_S = torch.zeros_like(run.value_S), torch.ones_like(run.broken_S)
        return cls(zero_S + 2 * threat.eps, zero_S, run.value_S, true_S)

    def at(self, keep_S: Tensor) -> Halving:
        """Return the rule at some of the rows."""
        return _rows(self, keep_S)

    def stops(self, steps: int) -> set[int]:
        """Return the steps after which `adapt` is called."""
        return set(checkpoints(steps))

    def move(self, path: Path, x_SX: Tensor, threat: Threat, *, first: bool) -> Tensor:
        """Return the next iterate (Croce and Hein 2020, Algorithm 1); the very first has no movement to go on with."""
        step_SX = per_example(self.length, x_SX) * steepest(path.gradient, threat)
        plain_SX = threat.bring_back(path.z + step_SX, x_SX)
        if first:
            return plain_SX
        mixed_SX = MOMENTUM * (plain_SX - path.z) + (1 - MOMENTUM) * (path.z - path.before)
        return threat.bring_back(path.z + mixed_SX, x_SX)

    def watch(self, rose_S: Tensor) -> None:
        """Count a step that raised the value at some of the examples."""
        self.rises, self.since = self.rises + rose_S, self.since + 1

    def adapt(self, run: Survivors, threat: Threat) -> Tensor:
        """Halve steps where too few raised the value, or where an unchanged step did not raise the best one."""
        stalled_S = ~self.halved & (run.value_S <= self.checked)
        self.halved = (self.rises < RHO * self.since) | stalled_S
        self.length = torch.where(self.halved, self.length / 2, self.length)
        self.checked, self.rises, self.since = run.value_S, torch.zeros_like(self.rises), 0
        return self.halved


@dataclass
class Sparse:
    """The steps of l1: their length, how many coordinates are moved, and the nonzero ones at the last checkpoint."""

    length: Tensor
    count: Tensor
    moved: Tensor

    @classmethod
    def first(cls, run: Survivors, threat: Threat, dense: bool) -> Sparse:
        """Return the rule before the first step; `dense`: the start does not tell how sparse a step should be."""
        length_S, coordinates = torch.full_like(run.value_S, threat.eps), run.x_SX[0].numel()
        if dense:
            return cls(length_S, 0 * length_S + coordinates, 0 * length_S + FIRST_SHARE * coordinates)
        count_S = _nonzero(run)
        return cls(length_S, count_S, count_S / SPARSER)

    def at(self, keep_S: Tensor) -> Sparse:
        """Return the rule at some of the rows."""
        return _rows(self, keep_S)

    def stops(self, steps: int) -> set[int]:
        """Return the steps after which `adapt` is called."""
        every = max(1, steps // 25)
        return set(range(every, steps + 1, every))

    def move(self, path: Path, x_SX: Tensor, threat: Threat, *, first: bool) -> Tensor:
        """Return the next iterate: equal moves of the coordinates with the largest gradient, no momentum."""
        gradient_SD = path.gradient.nan_to_num(0.0, 0.0, 0.0).flatten(1)
        size_SD = gradient_SD.abs()
        last_S1 = (self.moved.ceil().long().clamp(1, size_SD.shape[1]) - 1)[:, None]
        smallest_S1 = size_SD.sort(1, descending=True).values.gather(1, last_S1)
        sign_SD = torch.where(size_SD >= smallest_S1, gradient_SD.sign(), torch.zeros_like(gradient_SD))
        sign_SD = sign_SD / sign_SD.abs().sum(1, keepdim=True).clamp(min=1)
        step_SX = (self.length[:, None] * sign_SD).reshape(x_SX.shape)
        return threat.bring_back(path.z + step_SX, x_SX)

    def watch(self, rose_S: Tensor) -> None:
        """Nothing is counted: what decides is how sparse the best point has become."""

    def adapt(self, run: Survivors, threat: Threat) -> Tensor:
        """Start again from the best point, with full steps, where it has become sparser; else shorten the step."""
        count_S = _nonzero(run)
        sparser_S = count_S < STILL_DENSE * self.count
        shorter_S = (self.length / SHRINK).clamp(min=threat.eps / SHORTEST)
        self.length = torch.where(sparser_S, torch.full_like(shorter_S, threat.eps), shorter_S)
        self.count, self.moved = count_S, count_S / SPARSER
        return sparser_S


def _nonzero(run: Survivors) -> Tensor:
    """Return how many coordinates the best points change, (S,), in their floating type."""
    return (run.best_SX != run.x_SX).flatten(1).sum(1).to(run.value_S.dtype)


def _rows(state: Any, keep_S: Tensor) -> Any:
    """Return a dataclass of tensors at some of its rows."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return replace(state, **{name: value[keep_S] for name, value in values.items() if isinstance(value, Tensor)})
