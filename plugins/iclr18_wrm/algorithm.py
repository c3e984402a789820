"""WRM: maximise a loss minus a transport penalty (Sinha, Namkoong, Duchi, ICLR 2018), and the baselines of section 4.

`gamma` multiplies the *squared* distance, which is summed over the coordinates of one example: the inner problem is
strongly concave where 2 gamma > lambda_max of the Hessian of the loss in x. `loss` is always a function x -> one loss
per example, labels inside; no function here touches a parameter gradient. Hold the model with
`iclr18cli.models.modes.evaluating` meanwhile.
"""

# B batch · X the axes of one input · D coordinates of one input · K classes

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from iclr18_wrm.baselines import Box
from iclr18_wrm.baselines import fgm as fgm
from iclr18_wrm.baselines import ifgm as ifgm
from iclr18_wrm.baselines import norm_ball_ascent as norm_ball_ascent
from iclr18_wrm.baselines import pgm as pgm
from iclr18_wrm.derivatives import Loss, input_gradient, per_example
from iclr18_wrm.derivatives import hessian_top as hessian_top
from iclr18_wrm.labels import smooth_labels as smooth_labels
from iclr18_wrm.labels import soft_cross_entropy as soft_cross_entropy
from iclr18_wrm.transport import Cost, prox_linf_squared, transport_cost

Schedule = Literal["authors", "paper", "constant"]


def robust_surrogate(loss: Loss, z: Tensor, x: Tensor, *, gamma: float, cost: Cost = "l2") -> Tensor:
    """Return loss(z) - gamma c(z, x) per example: phi_gamma, Eq. (2), if z maximises it and a lower bound of it if not.

    Differentiable in the parameters: by Lemma 1 (Danskin) its gradient at the detached maximiser is that of phi_gamma.
    """
    return loss(z) - gamma * transport_cost(z, x, cost=cost)


def ascent_step(
    z: Tensor, x: Tensor, grad: Tensor, step: float | Tensor, *, gamma: float, cost: Cost = "l2", box: Box = None
) -> Tensor:
    """Return the next iterate of one ascent step on loss - gamma c(., x); `step` is a number or shaped (B,)."""
    a = per_example(step, z) if isinstance(step, Tensor) else step
    if cost == "l2":
        ascent = torch.sub(grad, z - x, alpha=2 * gamma)  # grad l(z) - 2 gamma (z - x), in two passes over memory
        z = torch.add(z, ascent, alpha=a) if isinstance(a, float | int) else z + a * ascent  # Algorithm 1, inner loop
    elif cost == "linf":
        z = x + prox_linf_squared(z + a * grad - x, 2 * gamma * step)  # Appendix E: gradient of the loss, then prox
    else:
        raise ValueError(f"cost must be 'l2' or 'linf'; received cost={cost!r}")
    return z if box is None else z.clamp(*box)


def step_sizes(schedule: Schedule, *, gamma: float, steps: int, step_size: float = 1.0) -> list[float]:
    """Return the step of every iteration, in the unit of x per unit of gradient.

    "authors": the code's one full step of eps grad l with eps = 1/(2 gamma), then `steps` more of 1/sqrt(t + 2),
    t = 0, 1, ...; as the first one starts at x this is 1/sqrt(t) for t = 1 .. steps + 1, in units of 1/(2 gamma);
    `step_size` is not used. "paper": alpha_t = step_size / sqrt(t). "constant": step_size.

    Raises:
        ValueError: unknown schedule, negative steps, gamma < 0, or gamma = 0 with "authors".

    Example:
        >>> step_sizes("authors", gamma=0.5, steps=3)[0::3]
        [1.0, 0.5]
    """
    if steps < 0 or not gamma >= 0:
        raise ValueError(f"steps and gamma must be >= 0; received steps={steps!r}, gamma={gamma!r}")
    if schedule == "authors":
        if gamma == 0:
            raise ValueError("the authors' steps have the unit 1/(2 gamma): gamma must be > 0; received gamma=0")
        return [1 / (2 * gamma * math.sqrt(t)) for t in range(1, steps + 2)]
    if schedule == "paper":
        return [step_size / math.sqrt(t) for t in range(1, steps + 1)]
    if schedule == "constant":
        return [step_size] * steps
    raise ValueError(f"schedule must be 'authors', 'paper' or 'constant'; received schedule={schedule!r}")


def surrogate_ascent(
    loss: Loss,
    x: Tensor,
    *,
    gamma: float,
    steps: int = 15,
    step_size: float = 1.0,
    schedule: Schedule = "authors",
    cost: Cost = "l2",
    start: Tensor | None = None,
    box: Box = None,
) -> Tensor:
    """Maximise loss(z) - gamma c(z, x) over z by gradient ascent, Algorithm 1, inner loop.

    Costs one forward and one input-only backward per step and nothing more: the caller's own forward at z gives
    phi = loss(z) - gamma c(z, x).

    Args:
        loss: x -> (B,).
        x: (B, X) natural points.
        gamma: Penalty on the squared distance.
        steps: T_adv; "authors" takes one gradient more, see `step_sizes`.
        step_size: alpha of "paper" and "constant".
        cost: "linf" is the authors' heuristic (not concave): no certificate may rest on it.
        start: First iterate, x by default.
        box: (low, high) of the domain to project on; None, as in the paper: pixels are not clipped.

    Returns:
        (B, X), detached. Each example depends on itself alone.
    """
    z = x.detach() if start is None else start.detach()
    for step in step_sizes(schedule, gamma=gamma, steps=steps, step_size=step_size):
        _, grad_BX = input_gradient(loss, z)
        z = ascent_step(z, x, grad_BX, step, gamma=gamma, cost=cost, box=box)
    return z


def stationarity_residual(loss: Loss, z: Tensor, x: Tensor, *, gamma: float) -> Tensor:
    """Return |grad l(z) - 2 gamma (z - x)|_2 per example, shape (B,).

    Where 2 gamma > L, L a bound of the Hessian's eigenvalues, phi - (loss(z) - gamma |z - x|^2) lies between 0 and
    residual^2 / (2 (2 gamma - L)).
    """
    _, grad_BX = input_gradient(loss, z)
    return (grad_BX - 2 * gamma * (z - x)).flatten(1).norm(dim=1)


def converged_ascent(
    loss: Loss,
    x: Tensor,
    *,
    gamma: float,
    tolerance: float = 1e-6,
    max_steps: int = 600,
    cost: Cost = "l2",
    start: Tensor | None = None,
    box: Box = None,
) -> tuple[Tensor, Tensor]:
    """Maximise loss(z) - gamma c(z, x) over z until each example is stationary, not for a fixed number of steps.

    Monotone spectral (Barzilai-Borwein) ascent with backtracking, a step length per example: the objective never falls
    beyond rounding, also where 2 gamma <= lambda_max and the point found is a local maximum only.

    Args:
        loss, x, gamma, cost, start, box: As in `surrogate_ascent`; gamma > 0.
        tolerance: Residual at which an example stops moving; float32 rarely gets below 1e-5.
        max_steps: Gradient evaluations at most.

    Returns:
        (z (B, X), residual (B,)): the points, and the norm of the gradient of the objective there (with a box or linf:
        of its proximal gradient mapping with step 1/(2 gamma)).

    Raises:
        ValueError: gamma <= 0.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0; received gamma={gamma!r}")
    x, unit = x.detach(), 1 / (2 * gamma)

    def move(z: Tensor, grad_BX: Tensor, step: float | Tensor) -> Tensor:
        return ascent_step(z, x, grad_BX, step, gamma=gamma, cost=cost, box=box)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss_B, grad_BX = input_gradient(loss, z)
        if cost == "l2" and box is None:
            ascent_BX = grad_BX - 2 * gamma * (z - x)
        else:
            ascent_BX = (move(z, grad_BX, unit) - z) / unit
        residual_B = ascent_BX.flatten(1).norm(dim=1)
        return loss_B - gamma * transport_cost(z, x, cost=cost), grad_BX, residual_B

    z = x if start is None else start.detach()
    phi_B, grad_BX, residual_B = evaluate(z)
    step_B = torch.full_like(phi_B, unit)
    rounding = torch.finfo(phi_B.dtype).eps ** (2 / 3)
    for _ in range(max_steps - 1):
        moving_B = (residual_B > tolerance) & (step_B > 1e-9 * unit)
        if not moving_B.any():
            break
        candidate = move(z, grad_BX, step_B)
        new_phi_B, new_grad_BX, new_residual_B = evaluate(candidate)
        change_BD = (candidate - z).flatten(1)
        length_B = change_BD.square().sum(1)
        rise_B = new_phi_B - phi_B
        # Near the top phi is flat to rounding; there the gradients tell its change, by the trapezium rule.
        mean_grad_BD = ((grad_BX + new_grad_BX) / 2).flatten(1)
        if cost == "l2":
            cost_rise_B = (change_BD * (candidate + z - 2 * x).flatten(1)).sum(1)
        else:
            cost_rise_B = transport_cost(candidate, x, cost=cost) - transport_cost(z, x, cost=cost)
        flat_B = rise_B.abs() <= rounding * (1 + phi_B.abs())
        rise_B = torch.where(flat_B, (change_BD * mean_grad_BD).sum(1) - gamma * cost_rise_B, rise_B)
        accept_B = moving_B & (rise_B >= 1e-4 * length_B / step_B) & new_residual_B.isfinite()  # Armijo

        slope_BD = (grad_BX - new_grad_BX).flatten(1) + (2 * gamma * change_BD if cost == "l2" else 0)
        curvature_B = (change_BD * slope_BD).sum(1) / length_B
        spectral_B = torch.where(curvature_B * step_B > 0.1, 1 / curvature_B, 10 * step_B)
        step_B = torch.where(accept_B, spectral_B, torch.where(moving_B, step_B / 4, step_B))

        accept_BX = per_example(accept_B, z)
        z, grad_BX = torch.where(accept_BX, candidate, z), torch.where(accept_BX, new_grad_BX, grad_BX)
        phi_B, residual_B = torch.where(accept_B, new_phi_B, phi_B), torch.where(accept_B, new_residual_B, residual_B)
    return z, residual_B
