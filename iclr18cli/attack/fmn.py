"""FMN, the fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021).

B batch · S examples under attack · X the axes of one input
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from iclr18cli.attack.hyperplane import DUAL, length, slope
from iclr18cli.attack.nearest import Nearest, clear_gap
from iclr18cli.attack.threat import Budget, Norm, Threat, onto_l1_ball, per_example, unit
from iclr18cli.models.modes import evaluating

GAMMA = (0.05, 1e-4)
"""First and last share by which the radius grows or shrinks in a step."""

ALPHA = (1.0, 1e-5)
"""First and last length of a step, in widths of the domain."""

REACH = 2.0
"""Without a domain: the first step in Euclidean distances to the boundary of the model linearised at x."""


def fmn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shrink a ball around x while the point is misclassified, grow it while it is not, and climb inside it.

    Pintor et al. (2021), Algorithm 1: while no misclassified point is known the radius is that of the linearised
    boundary, |delta| + |gap| / |gradient|_dual; later it is multiplied by 1 + gamma or 1 - gamma. Then a step of
    Euclidean length alpha along the gradient of the gap, back into the ball, then into the domain. alpha and gamma fall
    along a cosine. A search along the segment from x to the nearest point found ends it.

    Deviations: coordinates that the gradient would push out of the domain are left out of it. Otherwise they use up the
    length of the step and the ball, and on images with many black pixels the walk stalls before the boundary. The first
    radius aims gamma beyond the boundary, which a linear model would else never cross, and does not shrink.

    Args:
        model: Maps (B, *shape) to (B, K) logits.
        x: (B, *shape) float inputs inside the threat's domain, of any rank.
        y: (B,) int64 true classes.
        threat: Norm and domain; eps is not read.
        budget: `steps`, one backward pass each (the paper: 100 to 1000); `step_size`, the first alpha in units of the
            inputs (0: the width of the domain).
        generator: Not read: there is nothing random here.

    Returns:
        (B, *shape) like x, detached: the nearest misclassified point found; x itself where none was found or the
        model is wrong already.

    Raises:
        UserError: Inputs outside the domain, or a model without gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> z = fmn(net, torch.tensor([[0.2, 0.7]]), torch.tensor([0]), threat=Threat("l2", torch.inf, None))
        >>> bool((z - torch.tensor([[0.0, 0.7]])).abs().max() < 1e-3)
        True
    """
    threat.admit(x)
    budget = budget or Budget(steps=100)
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        nearest = Nearest(model, x_BX, y_B, threat)
        index_S, _ = nearest.right()
        if len(index_S) == 0:
            return nearest.point_BX
        x_SX, y_S = x_BX[index_S], y_B[index_S]
        delta_SX, radius_S, alpha_S = torch.zeros_like(x_SX), x_SX.new_zeros(len(x_SX)), None
        for step in range(budget.steps + 1):
            z_SX = threat.clip(x_SX + delta_SX).requires_grad_()
            gap_S, broken_S = clear_gap(model(z_SX), y_S)
            w_SX, gap_S, z_SX = slope(gap_S, z_SX), gap_S.detach(), z_SX.detach()
            if threat.domain is not None:
                low, high = threat.domain
                w_SX = w_SX.masked_fill(((z_SX <= low) & (w_SX < 0)) | ((z_SX >= high) & (w_SX > 0)), 0.0)
            nearest.offer(index_S, z_SX, broken_S)
            if step == budget.steps:
                break
            if alpha_S is None:
                alpha_S = _first_step(gap_S, w_SX, threat, budget)
            fall = (1 + math.cos(math.pi * step / budget.steps)) / 2
            gamma = GAMMA[1] + (GAMMA[0] - GAMMA[1]) * fall
            best_S = nearest.distance_B[index_S].to(x_SX.dtype)
            to_boundary_S = gap_S.abs() / length(w_SX, DUAL[threat.norm])
            to_boundary_S = torch.where(to_boundary_S.isfinite(), to_boundary_S, torch.zeros_like(gap_S))
            known_S, grown_S = best_S.isfinite(), radius_S * (1 + gamma)
            reach_S = (length(delta_SX, threat.norm) + to_boundary_S) * (1 + gamma)
            grown_S = torch.where(known_S, grown_S, torch.maximum(grown_S, reach_S))
            radius_S = torch.where(broken_S, torch.minimum(radius_S * (1 - gamma), best_S), grown_S)
            share = ALPHA[1] + (ALPHA[0] - ALPHA[1]) * fall
            delta_SX = delta_SX + per_example(share * alpha_S, x_SX) * unit(w_SX)
            delta_SX = threat.clip(x_SX + _into_ball(delta_SX, radius_S, threat.norm)) - x_SX
        return nearest.draw_closer()


def _first_step(gap_S: Tensor, w_SX: Tensor, threat: Threat, budget: Budget) -> Tensor:
    """Return the Euclidean length of each example's first step."""
    if budget.step_size:
        return torch.full_like(gap_S, budget.step_size)
    if threat.domain is not None:
        return torch.full_like(gap_S, threat.domain[1] - threat.domain[0])
    away_S = REACH * gap_S.abs() / length(w_SX, "l2")
    return torch.where(away_S.isfinite(), away_S, torch.ones_like(away_S))


def _into_ball(delta_SX: Tensor, radius_S: Tensor, norm: Norm) -> Tensor:
    """Project each perturbation onto the ball of its own radius."""
    radius = per_example(radius_S, delta_SX)
    if norm == "linf":
        return torch.minimum(torch.maximum(delta_SX, -radius), radius)
    if norm == "l1":
        safe = radius.clamp(min=torch.finfo(radius.dtype).tiny)
        return onto_l1_ball(delta_SX / safe, 1.0) * radius
    size = per_example(length(delta_SX, "l2"), delta_SX)
    return torch.where(size > radius, delta_SX * (radius / size), delta_SX)
