"""The strongest attack we know inside a Wasserstein ball: a lower bound of what the certificate bounds from above.

Any points moved by at most rho in mean squared distance are a distribution within the budget, so their mean loss must
not exceed the proven value. The attack shares the budget out: candidates for every point come from penalised ascents at
several penalties, and one multiplier chooses among them for all points.
"""

# N points · B batch · X the axes of one input

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from iclr18cli.certify.dual import Box, Loss, value_and_gradient
from iclr18cli.certify.shared_points import in_parts, joined, slices

FACTORS = (2.0, 1.0, 0.5, 0.2)
"""Penalties tried, in units of sqrt(E|grad l|^2 / rho) / 2, which spends the budget on a linear loss."""


SHRINK = (0.3, 0.5, 0.7, 0.85)
"""Parts of every displacement that are candidates, too: an ascent overshoots what one point needs."""


@dataclass(frozen=True)
class Attack:
    """Points moved within a budget.

    Args:
        value: Their mean loss, evaluated in float64.
        points: (N, X), in the type of the originals.
        mean_squared_distance: At most rho.
    """

    value: float
    points: Tensor
    mean_squared_distance: float


class Evaluate(Protocol):
    """Losses and squared distances (N,) of moved points; `exactly` in float64."""

    def __call__(self, points: Tensor, *, exactly: bool = False) -> tuple[Tensor, Tensor]:
        """Return both, in float64."""


@dataclass(frozen=True)
class _Candidate:
    points: Tensor
    loss: Tensor
    squared: Tensor


def distributional_attack(loss: Loss, x: Tensor, y: Tensor, rho: float, **options: object) -> Attack:
    """Return the attack for one budget, see `distributional_attacks`."""
    return distributional_attacks(loss, x, y, [rho], **options)[0]  # type: ignore[arg-type]


def distributional_attacks(
    loss: Loss,
    x: Tensor,
    y: Tensor,
    rhos: Sequence[float],
    *,
    exact_loss: Loss | None = None,
    steps: int = 30,
    refinements: int = 5,
    factors: Sequence[float] = FACTORS,
    shrink: Sequence[float] = SHRINK,
    box: Box = None,
    batch_size: int = 1024,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Attack]:
    """Move points so that their mean loss is as high as found with a mean squared distance of at most rho.

    Per budget: ascents on loss - gamma |z - x|^2 from the last solution, gamma falling; bisection on gamma towards a
    distance of exactly rho; then for every point the candidate with the largest loss - lambda distance, with one lambda
    for all points (so the budget may go to a few points that are near a boundary); the rest is used up greedily, and by
    scaling all displacements.

    Args:
        loss: See `Loss`, in the type of x.
        x, y: (N, X) and (N,).
        rhos: Budgets, each at least 0.
        exact_loss: The same loss for float64 points, by default `loss`.
        steps: Ascent steps per penalty.
        refinements: Bisection steps per budget.
        factors: Penalties tried per budget, in units of the one that spends the budget on a linear loss.
        shrink: Parts of the displacements that are tried, too; each costs one forward pass per penalty.
        box: (low, high) that the moved points stay in.
        batch_size: Points per evaluation.
        progress: Told how many points were evaluated.

    Returns:
        One attack per budget, in order; never below the clean mean loss.
    """
    exact, parts = exact_loss or loss, slices(len(x), batch_size)

    def evaluate(points: Tensor, *, exactly: bool = False) -> tuple[Tensor, Tensor]:
        # Choosing among candidates needs no float64; the numbers that are reported do.
        double = exactly and exact_loss is not None
        value = exact if exactly else loss

        def valued(part: slice) -> Tensor:
            with torch.no_grad():
                return value(points[part].double() if double else points[part], y[part]).double()

        return joined(in_parts(parts, valued), x.device), (points.double() - x.double()).flatten(1).square().sum(1)

    def climb(gamma: float, start: Tensor) -> _Candidate:
        def climbed(part: slice) -> Tensor:
            found = penalised_climb(loss, x[part], y[part], gamma=gamma, steps=steps, box=box, start=start[part])
            progress(len(found))
            return found

        points = joined(in_parts(parts, climbed), x.device)
        return _Candidate(points, *evaluate(points))

    still = _Candidate(x, *evaluate(x))
    squares = in_parts(
        parts, lambda part: value_and_gradient(loss, x[part], y[part])[1].flatten(1).double().square().sum(1)
    )
    slope = math.sqrt(float(torch.cat(squares).mean()))
    pool: dict[float, _Candidate] = {}
    budgets = [rho for rho in rhos if rho > 0]
    if slope > 0 and budgets:
        wanted = sorted({f * slope / 2 / math.sqrt(rho) for rho in budgets for f in factors}, reverse=True)
        start = x
        for gamma in wanted:
            if pool and min(pool) < 1.25 * gamma:
                continue
            pool[gamma] = climb(gamma, start)
            start = pool[gamma].points
        for rho in budgets:
            _bisect(pool, rho, climb, refinements)
    partial = (x + part * (found.points - x) for found in pool.values() for part in shrink)
    candidates = [still, *pool.values(), *(_Candidate(points, *evaluate(points)) for points in partial)]
    return [_spend(candidates, x, rho, evaluate, box) for rho in rhos]


def penalised_climb(
    loss: Loss, x: Tensor, y: Tensor, *, gamma: float, steps: int, box: Box = None, start: Tensor | None = None
) -> Tensor:
    """Ascend loss - gamma |z - x|^2 with a step per example that halves on failure: gamma may be at or below L/2.

    Returns:
        (B, X), never worse than the start.
    """
    z = (x if start is None else start).detach().clone()

    def objective(points: Tensor) -> tuple[Tensor, Tensor]:
        value_B, gradient = value_and_gradient(loss, points, y)
        return value_B - gamma * (points - x).flatten(1).square().sum(1), gradient - 2 * gamma * (points - x)

    best_B, direction = objective(z)
    step_B = torch.full_like(best_B, 1 / (2 * gamma))
    for _ in range(steps):
        trial = z + step_B.reshape(-1, *[1] * (z.ndim - 1)) * direction
        trial = trial if box is None else trial.clamp(*box)
        value_B, new_direction = objective(trial)
        better_B = value_B > best_B
        gain = float((value_B - best_B).clamp(min=0).mean())
        where = better_B.reshape(-1, *[1] * (z.ndim - 1))
        z, direction = torch.where(where, trial, z), torch.where(where, new_direction, direction)
        best_B = torch.where(better_B, value_B, best_B)
        step_B = torch.where(better_B, 1.5 * step_B, step_B / 3)
        if gain <= 1e-6 * (1e-3 + float(best_B.abs().mean())):
            break
    return z


def _bisect(
    pool: dict[float, _Candidate], rho: float, climb: Callable[[float, Tensor], _Candidate], refinements: int
) -> None:
    """Add candidates whose mean squared distance approaches rho; gamma down means distance up."""
    for _ in range(refinements):
        near = [gamma for gamma, c in pool.items() if float(c.squared.mean()) <= rho]
        far = [gamma for gamma, c in pool.items() if float(c.squared.mean()) > rho]
        high = min(near, default=4 * max(pool))
        low = max((gamma for gamma in far if gamma < high), default=high / 4)
        gamma = math.sqrt(high * low)
        if high / low < 1.01 or gamma in pool:
            return
        pool[gamma] = climb(gamma, pool.get(high, next(iter(pool.values()))).points)


def _spend(
    candidates: list[_Candidate],
    x: Tensor,
    rho: float,
    evaluate: Evaluate,
    box: Box,
) -> Attack:
    """Choose one candidate per point within the budget and use up what is left."""
    loss_CN = torch.stack([c.loss for c in candidates])
    squared_CN = torch.stack([c.squared for c in candidates])
    budget, columns = rho * len(x), torch.arange(len(x), device=x.device)

    def choose(multiplier: float) -> tuple[Tensor, float]:
        choice_N = (loss_CN - multiplier * squared_CN).argmax(0)
        return choice_N, float(squared_CN[choice_N, columns].sum())

    high, low = 1.0, 0.0
    while choose(high)[1] > budget and high < 1e30:
        low, high = high, 4 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if choose(middle)[1] > budget else (low, middle)
    (choice_N, spent), more_N = choose(high), choose(low)[0]
    extra_N = squared_CN[more_N, columns] - squared_CN[choice_N, columns]
    gain_N = loss_CN[more_N, columns] - loss_CN[choice_N, columns]
    order = (gain_N / extra_N.clamp(min=1e-30)).argsort(descending=True)
    order = order[extra_N[order] > 0]
    fits = order[spent + extra_N[order].cumsum(0) <= budget]
    choice_N[fits] = more_N[fits]

    points = candidates[0].points.clone()
    for index, candidate in enumerate(candidates):
        points[choice_N == index] = candidate.points[choice_N == index]
    options = [points, within_budget(x, points, rho, box=box)]
    seen = [evaluate(moved) for moved in options]
    allowed = [i for i, (_, squared_N) in enumerate(seen) if float(squared_N.mean()) <= rho]
    best = max(allowed, key=lambda i: float(seen[i][0].mean()), default=None)
    still = Attack(float(evaluate(x, exactly=True)[0].mean()), x, 0.0)
    if best is None:
        return still
    loss_N, squared_N = evaluate(options[best], exactly=True)
    found = Attack(float(loss_N.mean()), options[best], float(squared_N.mean()))
    return found if found.value > still.value else still


def within_budget(x: Tensor, moved: Tensor, rho: float, *, box: Box = None) -> Tensor:
    """Scale all displacements by one factor so that their mean squared length is rho, and never above it.

    Args:
        x, moved: (N, X) originals and any attack's points.
        rho: Budget, mean squared displacement.
        box: (low, high) that the result is clipped to.

    Example:
        >>> within_budget(torch.zeros(1, 1), torch.ones(1, 1), 0.25).round(decimals=4).item()
        0.5
    """
    displacement = moved.double() - x.double()
    mean = float(displacement.flatten(1).square().sum(1).mean())
    factor = math.sqrt(rho / mean) if mean > 0 else 0.0
    for _ in range(60):
        scaled = (x.double() + factor * displacement).to(x.dtype)
        scaled = scaled if box is None else scaled.clamp(*box)
        if float((scaled.double() - x.double()).flatten(1).square().sum(1).mean()) <= rho:
            return scaled
        factor *= 1 - 1e-6
    return x.clone()
