"""Square Attack (Andriushchenko et al. 2020; for l1 Croce and Hein 2021): random search on squares, no gradients.

B batch · S survivors · C channels · P places, pixels of an image · K places of one window

An input (C, H, W) has C channels and H * W places, and a window is a square of them. Any other input has one channel,
its places are its coordinates, and as nothing is known of their order a window is a random subset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import Goal
from iclr18cli.attack.survivors import Survivors, judge
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.models.modes import evaluating

FIRST_SHARE = 0.8
"""Share of the places in the first windows (p_init of AutoAttack)."""

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Proposals after which the share is halved. As in AutoAttack they are not rescaled to the number of queries."""

TINY = 1e-12


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Find inputs near x that the model gets wrong by changing one random window at a time.

    A change is kept if it raises the margin (Andriushchenko et al. 2020, Algorithm 1). linf: a window takes x + eps or
    x - eps, one sign per channel (Algorithm 2; outside images one per coordinate); where that changes nothing the
    other sign is taken, as in the authors' first code. l2 and l1: a window takes over the perturbation of another, in
    a new pattern (Algorithm 3). Every example has its own windows.

    Args:
        model, x, y, threat, generator, targets: As for `iclr18cli.attack.pgd.pgd`; no gradient is asked for.
        budget: `queries` forward passes per example, that at x included.

    Returns:
        (B, *shape) like x: the first misclassified point found, else the one of highest margin, x itself included.

    Raises:
        UserError: Inputs outside the domain.
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad(), evaluating(model):
        run = Survivors(x, Goal("margin", y, targets))
        if len(run) == 0:
            return run.points()
        run.note(run.x_SX, *judge(model, run.x_SX, run.goal))
        run.thin()
        if threat.eps > 0 and budget.queries > 1 and len(run) > 0:
            run.note(*_search(model, run, threat, budget.queries - 1, generator))
    return run.points()


def window_share(proposal: int) -> float:
    """Return the share of the places that the windows of a proposal cover; proposals count from 0.

    Example:
        >>> [window_share(proposal) for proposal in (0, 10, 11, 4999)]
        [0.8, 0.8, 0.4, 0.00625]
    """
    return FIRST_SHARE / 2 ** sum(proposal > bound for bound in HALVED_AFTER)


def _search(
    model: nn.Module, run: Survivors, threat: Threat, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return best points, values and where broken, of every example in `run`; x itself is not among them."""
    own, board = Survivors(run.x_SX, run.goal), _Board.of(run.x_SX, threat, generator)
    for query in range(queries):
        own.thin(query)
        if len(own) == 0:
            break
        if query == 0:
            z_SX = board.first(own.x_SX)
        else:
            z_SX = board.propose(own.best_SX, own.x_SX, window_share(query - 1))
        own.note(z_SX, *judge(model, z_SX, own.goal))
    return own.all()


@dataclass(frozen=True)
class _Board:
    """Draws proposals for inputs of one shape."""

    shape: tuple[int, ...]
    threat: Threat
    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    patterns: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, x_SX: Tensor, threat: Threat, generator: torch.Generator) -> _Board:
        return cls(tuple(x_SX.shape[1:]), threat, generator, x_SX.device, x_SX.dtype)

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    @property
    def channels(self) -> int:
        return self.shape[0] if self.image else 1

    @property
    def places(self) -> int:
        return math.prod(self.shape) // self.channels

    @property
    def order(self) -> int:
        return 1 if self.threat.norm == "l1" else 2

    def flat(self, x_SX: Tensor) -> Tensor:
        """Return (S, C, P)."""
        return x_SX.reshape(len(x_SX), self.channels, self.places)

    def first(self, x_SX: Tensor) -> Tensor:
        """Return the points the search starts from: vertical stripes for linf, a grid of patterns for l2 and l1."""
        count = len(x_SX)
        if self.threat.norm == "linf":
            sign = self._signs(count, self.channels, 1, self.shape[2]) if self.image else self._signs(*x_SX.shape)
            return self.threat.clip(x_SX + self.threat.eps * sign)
        # l1 starts far outside: the projection then spends eps on the peaks that have room to move.
        times = 3.0 if self.order == 1 else 1.0
        if not self.image:
            return self._moved(x_SX, self._normal(count, 1, self.places), times)
        _, height, width = self.shape
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        tile = self._pattern(side)
        tile = torch.where(self._coins(count, 1, down, 1, across, 1), tile[:, None], tile.T[:, None])
        tile = tile * self._signs(count, self.channels, down, 1, across, 1)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(x_SX)
        delta[:, :, top : top + down * side, left : left + across * side] = tile.reshape(
            count, self.channels, down * side, across * side
        )
        return self._moved(x_SX, self.flat(delta), times)

    def propose(self, now_SX: Tensor, x_SX: Tensor, share: float) -> Tensor:
        """Return each point with another perturbation in a window of about `share` of the places."""
        if self.threat.norm == "linf":
            return self._repainted(now_SX, x_SX, share)
        return self._rearranged(now_SX, x_SX, share)

    def _repainted(self, now_SX: Tensor, x_SX: Tensor, share: float) -> Tensor:
        """linf: set a window to x + eps or x - eps."""
        window_SCK = self._expand(self._window(len(x_SX), self._size(share)))
        x_SCK, now_SCP = self.flat(x_SX).gather(2, window_SCK), self.flat(now_SX)
        sign = self._signs(len(x_SX), self.channels, 1 if self.image else window_SCK.shape[2])
        new_SCK = self.threat.clip(x_SCK + self.threat.eps * sign)
        same_S11 = (new_SCK == now_SCP.gather(2, window_SCK)).all(2, keepdim=True).all(1, keepdim=True)
        new_SCK = torch.where(same_S11, self.threat.clip(x_SCK - self.threat.eps * sign), new_SCK)
        return now_SCP.scatter(2, window_SCK, new_SCK).reshape(x_SX.shape)

    def _rearranged(self, now_SX: Tensor, x_SX: Tensor, share: float) -> Tensor:
        """l2, l1: give one window the perturbation of two, and what of eps is unused, in a new pattern."""
        count, size = len(x_SX), self._size(share)
        delta_SCP = self.flat(now_SX - x_SX)
        window_SCK, other_SCK = (self._expand(self._window(count, size)) for _ in range(2))
        old_SCK = delta_SCP.gather(2, window_SCK)
        total_S11 = self._length(delta_SCP.flatten(1))[:, :, None]
        outside_SCP = delta_SCP.scatter(2, window_SCK, 0).scatter(2, other_SCK, 0)
        held_SC1 = self._length(delta_SCP - outside_SCP)
        if self.image:
            pattern = self._pattern(size)
            turned = torch.where(self._coins(count, 1, 1, 1), pattern, pattern.T)
            new_SCK = turned.flatten(2) * self._signs(count, self.channels, 1)
        else:
            new_SCK = self._normal(count, 1, size)
            new_SCK = new_SCK / (self._length(new_SCK) + TINY)
        new_SCK = new_SCK + old_SCK / (self._length(old_SCK) + TINY)
        unused_S11 = (self.threat.eps**self.order - total_S11**self.order).clamp(min=0) / self.channels
        length_SC1 = (unused_S11 + held_SC1**self.order) ** (1 / self.order)
        new_SCK = new_SCK / (self._length(new_SCK) + TINY) * length_SC1
        return self._moved(x_SX, outside_SCP.scatter(2, window_SCK, new_SCK))

    def _moved(self, x_SX: Tensor, delta_SCP: Tensor, times: float = 1.0) -> Tensor:
        """Return x moved along delta by `times` eps, then brought into ball and domain."""
        length_S11 = self._length(delta_SCP.flatten(1))[:, :, None]
        delta_SCP = delta_SCP * (times * self.threat.eps / (length_S11 + TINY))
        return self.threat.bring_back(x_SX + delta_SCP.reshape(x_SX.shape), x_SX)

    def _size(self, share: float) -> int:
        """Return the side of a square window, or the number of coordinates of a subset."""
        least = 1 if self.threat.norm == "linf" else 3
        if not self.image:
            return min(max(round(share * self.places), least), self.places)
        side = max(round(math.sqrt(share * self.places)), least)
        side += self.threat.norm != "linf" and side % 2 == 0
        return min(side, *self.shape[1:])

    def _window(self, count: int, size: int) -> Tensor:
        """Draw a window for each example: the numbers of its places, (count, 1, K)."""
        if not self.image:
            return self._uniform(count, 1, self.places).topk(size, dim=2).indices
        _, height, width = self.shape
        draw_S2 = self._uniform(count, 2)
        top_S = (draw_S2[:, 0] * (height - size + 1)).long()
        left_S = (draw_S2[:, 1] * (width - size + 1)).long()
        side = torch.arange(size, device=self.device)
        place = (top_S[:, None, None] + side[:, None]) * width + left_S[:, None, None] + side
        return place.reshape(count, 1, size * size)

    def _pattern(self, side: int) -> Tensor:
        """Return two peaks of opposite sign in the halves of a square, of length 1 (Andriushchenko et al. 2020).

        A peak of height and width h, w sums, over k, squares of radius k about its centre, weighted by 1 / (k + 1)^2;
        for l1 by 1 / (k + 1)^4 (Croce and Hein 2021).
        """
        if side in self.patterns:
            return self.patterns[side]
        upper = side // 2
        halves = [_peak(height, side, 2 if self.order == 2 else 4) for height in (upper, side - upper) if height]
        halves = [half / (half**self.order).sum() ** (1 / self.order) for half in halves]
        pattern = torch.cat([halves[0], -halves[-1]]) if upper else -halves[0]
        pattern = pattern / (pattern.abs() ** self.order).sum() ** (1 / self.order)
        return self.patterns.setdefault(side, pattern.to(self.device, self.dtype))

    def _expand(self, window_S1K: Tensor) -> Tensor:
        return window_S1K.expand(-1, self.channels, -1)

    def _length(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(-1, keepdim=True) if self.order == 1 else delta.norm(dim=-1, keepdim=True)

    def _uniform(self, *size: int) -> Tensor:
        return self._drawn(torch.rand, size)

    def _normal(self, *size: int) -> Tensor:
        return self._drawn(torch.randn, size)

    def _coins(self, *size: int) -> Tensor:
        return self._uniform(*size) < 0.5

    def _signs(self, *size: int) -> Tensor:
        return self._coins(*size).to(self.dtype) * 2 - 1

    def _drawn(self, draw: Any, size: tuple[int, ...]) -> Tensor:
        drawn: Tensor = draw(size, dtype=self.dtype, device=self.generator.device, generator=self.generator)
        return drawn.to(self.device)


def _peak(height: int, width: int, power: int) -> Tensor:
    """Return a positive peak, (height, width), float64."""
    middle_row, middle_column = height // 2, width // 2
    far = torch.maximum(
        (torch.arange(height) - middle_row).abs()[:, None], (torch.arange(width) - middle_column).abs()[None]
    )
    weight = 1 / torch.arange(1, max(middle_row, middle_column) + 2, dtype=torch.float64) ** power
    return weight.flip(0).cumsum(0).flip(0)[far]
