"""The rungs S0, S1, S2 evaluated on a whole sample, and the smallest of them per budget."""

# N points · B batch · X the axes of one input

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from iclr18cli.certify.dual import (
    dual_bound,
    dual_values,
    lipschitz_bound,
    penalised_ascent,
    taylor_bound,
    value_and_gradient,
)
from iclr18cli.certify.problem import Problem
from iclr18cli.certify.shared_points import in_parts, joined

GRID = (1.01, 1.1, 1.4, 2.0, 4.0, 10.0, 30.0, 100.0)
"""Penalties tried, in units of L/2; fixed before the data are seen, as the population form needs."""

PILOT = 256
"""Points on which the penalties are compared before the best ones are used on the whole sample."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Clean:
    """Losses (N,) and squared gradient norms (N,) at the points themselves, float64."""

    loss: Tensor
    squared_gradient: Tensor


@dataclass(frozen=True)
class Dual:
    """Rung S2 at one penalty: U (N,), and how well the ascent did."""

    upper: Tensor
    steps: int
    max_residual: float
    gap_mean: float


@dataclass(frozen=True)
class Ladder:
    """The rungs at one budget.

    Args:
        values: Rung name -> bound, for the rungs that apply.
        gamma: Penalty of the S2 value, None without S2.
        refused: Rung name -> why it does not apply.
    """

    rho: float
    values: Mapping[str, float]
    gamma: float | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """Name of the rung with the smallest value; every rung is valid, so their minimum is."""
        return min(self.values, key=lambda name: self.values[name])

    @property
    def value(self) -> float:
        """The smallest value."""
        return self.values[self.best]


def clean(problem: Problem, progress: Progress = lambda n: None) -> Clean:
    """Evaluate losses and gradients at the points, in float64."""

    def evaluated(part: slice) -> tuple[Tensor, Tensor]:
        value_B, gradient_BX = value_and_gradient(problem.exact_loss, problem.x[part].double(), problem.y[part])
        progress(len(value_B))
        return value_B.double(), gradient_BX.double().flatten(1).square().sum(1)

    losses, squares = zip(*in_parts(problem.batches(), evaluated), strict=True)
    return Clean(joined(losses, problem.x.device), joined(squares, problem.x.device))


def solve_dual(
    problem: Problem,
    at: Clean,
    gammas: Sequence[float],
    *,
    tolerance: float = 1e-6,
    max_steps: int = 100,
    progress: Progress = lambda n: None,
) -> dict[float, Dual]:
    """Bound phi_gamma at every point for every penalty, the largest first, each from the last one's solution.

    U is the smallest of: the dual value at the end of the ascent; the same at the point itself, l + |grad l|^2 /
    (2 (2 gamma - L)); l + K^2 / (4 gamma), from the Lipschitz constant; and the loss's own bound.
    """
    solved: dict[float, Dual] = {}
    start = problem.x

    def solve(gamma: float, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        x, y = problem.x[part], problem.y[part]
        ascent = penalised_ascent(
            problem.loss, x, y, gamma=gamma, L=problem.L, box=problem.box, tolerance=tolerance,
            max_steps=max_steps, start=start[part],
        )  # fmt: skip
        dual = dual_values(problem.exact_loss, x, y, ascent.points, gamma=gamma, L=problem.L, box=problem.box)
        at_point_B = at.loss[part] + at.squared_gradient[part] / (2 * (2 * gamma - problem.L))
        upper_B = torch.minimum(dual.upper, at_point_B)
        upper_B = torch.minimum(upper_B, at.loss[part] + problem.K**2 / (4 * gamma))
        progress(len(x))
        bounded_B = upper_B if problem.bound is None else upper_B.clamp(max=problem.bound)
        return ascent.points, bounded_B, dual.residual, dual.gap, ascent.steps

    for gamma in sorted(set(gammas), reverse=True):
        points, uppers, residuals, gaps, steps = zip(*in_parts(problem.batches(), partial(solve, gamma)), strict=True)
        start = joined(points, problem.x.device)
        upper_N = joined(uppers, problem.x.device)
        solved[gamma] = Dual(upper_N, max(steps), float(torch.cat(residuals).max()), float(torch.cat(gaps).mean()))
    return solved


def default_gammas(L: float, at: Clean | None = None, rhos: Sequence[float] = ()) -> list[float]:
    """Return the penalties to try: a fixed grid above L/2 and, given the losses' slopes, the optimum of S1 per budget.

    S1's own optimum is gamma = (L + sqrt(E|grad l|^2 / rho)) / 2. It depends on the sample: leave it out (no `at`) for
    a population statement, whose union bound counts penalties that were fixed before.
    """
    if not math.isfinite(L):
        return []
    fixed = {factor * L / 2 for factor in GRID} if L > 0 else {10.0**k for k in range(-4, 5)}
    if at is None:
        return sorted(fixed)
    slope = math.sqrt(float(at.squared_gradient.mean()))
    fitted = {(L + slope / math.sqrt(rho)) / 2 for rho in rhos if rho > 0 and slope > 0}
    return sorted(fixed | {gamma for gamma in fitted if gamma > L / 2})


def choose_gammas(
    problem: Problem, at: Clean, rhos: Sequence[float], gammas: Sequence[float], progress: Progress = lambda n: None
) -> list[float]:
    """Return for every budget the penalty that does best on a part of the points: the others are not worth the time.

    Any choice is valid; with few points all penalties stay.
    """
    n = len(problem.x)
    if n <= 2 * PILOT:
        return list(gammas)
    index = torch.linspace(0, n - 1, PILOT, device=problem.x.device).long()
    part = Clean(at.loss[index], at.squared_gradient[index])
    pilot = solve_dual(problem.take(index), part, gammas, progress=progress)
    return sorted({min(pilot, key=lambda gamma: dual_bound(pilot[gamma].upper, rho, gamma=gamma)) for rho in rhos})


def rungs(
    rhos: Sequence[float],
    at: Clean,
    *,
    K: float,
    L: float,
    duals: Mapping[float, Dual] | None = None,
    bound: float | None = None,
    margins: Mapping[str, float] | None = None,
    refused: Mapping[str, str] | None = None,
) -> dict[float, Ladder]:
    """Return every rung's value for every budget, and with it the smallest valid one.

    Args:
        rhos: Budgets, mean squared displacement.
        at: Losses and gradients at the points.
        K, L: Constants; an infinite L refuses S1 and S2.
        duals: Solutions by penalty, for S2.
        bound: Largest value of the loss; every rung is clipped there.
        margins: Rung name -> amount to add for a population statement.
        refused: Rung name -> reason, for rungs that the caller rules out.

    Returns:
        Budget -> ladder.
    """
    reasons = dict(refused or {})
    if not math.isfinite(L):
        reasons.setdefault("S1", "the loss is not smooth")
        reasons.setdefault("S2", "the loss is not smooth")
    elif not duals:
        reasons.setdefault("S2", "no penalty was solved")
    ladders: dict[float, Ladder] = {}
    for rho in rhos:
        values: dict[str, float] = {}
        gamma = None
        if "S0" not in reasons:
            values["S0"] = lipschitz_bound(at.loss, rho, K=K)
        if "S1" not in reasons:
            values["S1"] = taylor_bound(at.loss, at.squared_gradient, rho, L=L)
        if "S2" not in reasons and duals:
            by_gamma = {g: dual_bound(dual.upper, rho, gamma=g) for g, dual in duals.items()}
            gamma = min(by_gamma, key=lambda g: by_gamma[g])
            values["S2"] = by_gamma[gamma]
        for name in values:
            values[name] += (margins or {}).get(name, 0.0)
            if bound is not None:
                values[name] = min(bound, values[name])
        ladders[rho] = Ladder(rho, values, gamma, {k: v for k, v in reasons.items() if k not in values})
    return ladders
