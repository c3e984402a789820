"""The pieces of the Wasserstein certificate: closed-form rungs S0 and S1, and the dual rung S2 with its gap.

P_n are the n evaluated points, the cost is |x - x'|^2 for equal labels and infinite otherwise, and rho bounds the mean
cost: rho is an average *squared* 2-norm displacement, and one point alone may move by sqrt(n rho). Certification card,
section 1. All sums are in float64; every bound holds for whatever points the ascent ends at.
"""

# B batch · X the axes of one input · D coordinates of one input

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iclr18cli.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(x (B, X), y (B,)) -> one loss per example (B,); the loss of an example may depend on that example alone."""

Box = tuple[float, float] | None

SLACK = 1e-9
"""Relative amount added to every bound for the rounding of float64 sums and of the loss."""


def outward(value: float, size: float = 0.0) -> float:
    """Return the value plus its slack; `size` is the largest number that entered the sum."""
    return value + SLACK * max(abs(value), abs(size))


def value_and_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (loss (B,), its gradient in the input (B, X)), detached; parameter gradients stay as they are."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value_B = loss(x, y)
        if not value_B.requires_grad:  # constant in x
            return value_B.detach(), torch.zeros_like(x)
        (gradient_BX,) = torch.autograd.grad(value_B.sum(), x)
    return value_B.detach(), gradient_BX.detach()


def lipschitz_bound(loss_N: Tensor, rho: float, *, K: float) -> float:
    """Return E l + K sqrt(rho), rung S0: no point's loss grows faster than K, and E|d| <= sqrt(E|d|^2).

    Args:
        loss_N: Losses at the points.
        rho: Budget, mean squared displacement.
        K: Upper bound of the Lipschitz constant of the loss in the input.
    """
    mean = float(loss_N.double().mean())
    return outward(mean + K * math.sqrt(rho), mean)


def taylor_bound(loss_N: Tensor, squared_gradient_N: Tensor, rho: float, *, L: float) -> float:
    """Return E l + sqrt(E|grad l|^2) sqrt(rho) + (L/2) rho, rung S1, tight to first order as rho -> 0.

    From l(x + d) <= l(x) + grad l(x) d + (L/2)|d|^2 and Cauchy-Schwarz over the points.

    Args:
        loss_N: Losses at the points.
        squared_gradient_N: |grad l|^2 there.
        rho: Budget, mean squared displacement.
        L: Upper bound of the Lipschitz constant of grad l.
    """
    mean = float(loss_N.double().mean())
    slope = math.sqrt(float(squared_gradient_N.double().mean()))
    return outward(mean + slope * math.sqrt(rho) + L / 2 * rho, mean)


def check_gammas(gammas: list[float], *, L: float) -> None:
    """Refuse penalties at which the inner problem is not proven concave.

    Raises:
        UserError: One is at most L/2; the message prints the least that would do.
    """
    if not math.isfinite(L):
        raise UserError("The loss has no finite L, so no penalty gamma makes its dual bound provable.")
    low = [gamma for gamma in gammas if not gamma > L / 2]
    if low:
        raise UserError(
            f"gamma = {min(low):.4g} is not above L/2: the inner problem is not proven to be concave there.",
            why=f"L = {L:.6g} from the layers' norms; gamma multiplies the squared distance, so 2 gamma > L is needed",
            fix=f"use gamma > {L / 2 * (1 + 1e-6):.6g}, or train with a smaller L (`--spectral-cap`)",
        )


@dataclass(frozen=True)
class Ascent:
    """Where an ascent ended.

    Args:
        points: (B, X), in the type of the starting points.
        steps: Gradient evaluations of the slowest example.
    """

    points: Tensor
    steps: int


def penalised_ascent(
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    gamma: float,
    L: float,
    box: Box = None,
    tolerance: float = 1e-6,
    max_steps: int = 100,
    start: Tensor | None = None,
) -> Ascent:
    """Maximise loss(z) - gamma |z - x|^2 over z by the fixed point z <- x + grad l(z) / (2 gamma), gamma > L/2.

    That is gradient ascent with the step 1/(2 gamma), the best fixed step for curvatures between 2 gamma - L and
    2 gamma + L; it contracts with the factor L/(2 gamma), and so does its projection to a box. Examples leave the batch
    once what is left to gain is at most `tolerance`.

    Args:
        loss: See `Loss`.
        x, y: (B, X) points and their labels.
        gamma: Penalty on the squared distance.
        L: Bound of the Hessian's norm.
        box: (low, high) that z stays in; None: all of R^d.
        tolerance: Gap, in the unit of the loss, at which an example stops.
        max_steps: Gradient evaluations at most.
        start: First iterate, x by default.

    Returns:
        The points; how good they are is measured afterwards, by `dual_values`.
    """
    z = (x if start is None else start).detach().clone()
    active = torch.arange(len(x), device=x.device)
    steps = 0
    for _ in range(max_steps):
        z_A, x_A, y_A = z[active], x[active], y[active]
        _, gradient_AX = value_and_gradient(loss, z_A, y_A)
        moved = x_A + gradient_AX / (2 * gamma)
        if box is not None:
            moved = moved.clamp(*box)
        steps += 1
        # Free coordinates: r = 2 gamma (moved - z); in a box this is the gradient mapping, good enough to stop by.
        squared_A = (2 * gamma * (moved - z_A)).flatten(1).double().square().sum(1)
        open_A = squared_A / (2 * (2 * gamma - L)) > tolerance
        if not open_A.any():
            break
        z[active[open_A]] = moved[open_A]
        active = active[open_A]
    return Ascent(z, steps)


def dual_gap(residual: Tensor, points: Tensor, *, gamma: float, L: float, box: Box = None) -> Tensor:
    """Return an upper bound of what phi exceeds its value at the points by, per example, for any points.

    With h(z) = l(z) - gamma |z - x|^2 and r = grad h: h(z + s) <= h(z) + r s - (gamma - L/2)|s|^2. Its maximum over s
    is |r|^2 / (2 (2 gamma - L)); with z + s in a box it is a sum over the coordinates of the maximum on an interval.

    Args:
        residual: r (B, X), float64.
        points: z (B, X), float64; may lie outside the box.
        gamma, L, box: As in `penalised_ascent`.

    Returns:
        (B,) float64, not negative for points in the box.

    Example:
        >>> r = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        >>> dual_gap(r, torch.zeros_like(r), gamma=2.0, L=2.0).item()
        6.25
    """
    curvature = 2 * gamma - L
    r_BD = residual.flatten(1)
    if box is None:
        return r_BD.square().sum(1) / (2 * curvature)
    z_BD = points.flatten(1)
    s_BD = (r_BD / curvature).clamp(box[0] - z_BD, box[1] - z_BD)
    return (r_BD * s_BD - curvature / 2 * s_BD.square()).sum(1)


@dataclass(frozen=True)
class DualValues:
    """Per example, float64: `upper` >= phi_gamma, penalised loss `attained` at the points, `gap`, `residual` |r|."""

    upper: Tensor
    attained: Tensor
    gap: Tensor
    residual: Tensor


def dual_values(
    loss: Loss, x: Tensor, y: Tensor, points: Tensor, *, gamma: float, L: float, box: Box = None
) -> DualValues:
    """Bound phi_gamma(x) = sup_z loss(z) - gamma |z - x|^2 from above from any points, rung S2 of the card.

    Args:
        loss: Must compute in float64.
        x, y: (B, X) and (B,), the evaluated points.
        points: (B, X), where an ascent ended; only tightness depends on them.
        gamma, L, box: As in `penalised_ascent`.

    Returns:
        Four tensors (B,).
    """
    x, z = x.double(), points.double()
    value_B, gradient_BX = value_and_gradient(loss, z, y)
    attained_B = value_B.double() - gamma * (z - x).flatten(1).square().sum(1)
    residual = gradient_BX.double() - 2 * gamma * (z - x)
    gap_B = dual_gap(residual, z, gamma=gamma, L=L, box=box)
    return DualValues(attained_B + gap_B, attained_B, gap_B, residual.flatten(1).norm(dim=1))


def dual_bound(upper_N: Tensor, rho: float, *, gamma: float) -> float:
    """Return gamma rho + mean U for one penalty, rung S2; the least over several penalties is valid, too.

    Args:
        upper_N: U_i >= phi_gamma(x_i), float64.
        rho: Budget, mean squared displacement.
        gamma: Penalty that U belongs to.
    """
    mean = float(upper_N.double().mean())
    return outward(gamma * rho + mean, max(gamma * rho, abs(mean)))


def population_margin(n: int, delta: float, *, m: int = 1, M: float = 1.0) -> float:
    """Return M sqrt(log(m / delta) / (2 n)), what a bound for n drawn points needs to hold for their distribution.

    Hoeffding's inequality and a union bound over the m functions whose means are used, each in [0, M]. With probability
    1 - delta over the draw of the points, for a model that was fixed before.

    Raises:
        ValueError: A count is below 1 or delta not inside (0, 1).

    Example:
        >>> round(population_margin(10_000, 0.001), 4)
        0.0186
    """
    if n < 1 or m < 1 or not 0 < delta < 1 or not 0 < M < math.inf:
        raise ValueError(
            f"n, m >= 1, 0 < delta < 1 and a finite M > 0; received n={n!r}, m={m!r}, delta={delta!r}, M={M!r}"
        )
    return M * math.sqrt(math.log(m / delta) / (2 * n))


def error_bound(value: float, *, loss: str) -> float:
    """Return the error rate that a bound of the expected loss implies: misclassified means p_y <= 1/2.

    Cross-entropy in nats: value / log 2. Error probability 1 - p_y: twice the value. At most 1, which says nothing.

    Raises:
        ValueError: Unknown loss.

    Example:
        >>> error_bound(0.1, loss="error-probability")
        0.2
    """
    if loss not in ("cross-entropy", "error-probability"):
        raise ValueError(f"loss must be 'cross-entropy' or 'error-probability'; received loss={loss!r}")
    return min(1.0, value / math.log(2) if loss == "cross-entropy" else 2 * value)
