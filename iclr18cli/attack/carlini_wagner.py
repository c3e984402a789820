"""The l2 attack of Carlini and Wagner (2017), "Towards evaluating the robustness of neural networks".

B batch · S examples still descending · X the axes of one input
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.hyperplane import length, slope
from iclr18cli.attack.nearest import Nearest, clear_gap
from iclr18cli.attack.threat import Budget, Threat, per_example
from iclr18cli.models.modes import evaluating

LEARNING_RATE = 0.01
"""Adam's step in tanh space, as in the paper's code; longer if steps are few, so that they cross the domain."""

REACH = 0.05
"""Without a domain: Adam's step as a share of the largest coordinate of the move to the boundary of a linear model."""

MARGIN = 0.05
"""The box that tanh fills is wider than the domain by this share, so that inputs at 0 and 1 have a gradient."""

BETAS = (0.9, 0.999)
"""Adam's averages, Kingma and Ba (2015)."""

FACTOR = 10.0
"""The constant c goes up or down by this factor until it is bracketed."""

CLOSE = 1.3
"""An example is done when its bracket for c is as narrow as this ratio."""

SLOW = 0.999
"""An example leaves a search when a tenth of the steps leaves more than this share of its loss."""


def carlini_wagner_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Minimise |z - x|^2 + c * max(f_y - max_{j != y} f_j, 0) by Adam, with a search over c for every example.

    Carlini and Wagner (2017), §V-B and §VI-A with confidence 0. The loss is a difference of logits, so a constant
    added to all of them changes nothing. An example leaves a search when its loss has not fallen by 0.1 % over a
    tenth of the steps, each for itself, and stops searching once c is known to a factor of 1.3. The nearest
    misclassified iterate of all searches is kept and drawn closer along the segment from x.

    Deviations: z = centre + (1 + 0.05) * half width * tanh(w), clipped to the domain and differentiated as if it were
    not, instead of a box that tanh reaches only in the limit: the start is x itself and pixels at exactly 0 or 1 move.
    c starts where it would be right for a linear model, 2 * gap / |gradient of the gap|^2, instead of at 1e-3, and is
    halved in between on the logarithmic scale: scaled logits give the same search. Without a domain z - x itself is the
    variable, and the step is measured by the same linear model.

    Args:
        model: Maps (B, *shape) to (B, K) logits.
        x: (B, *shape) float inputs inside the threat's domain, of any rank.
        y: (B,) int64 true classes.
        threat: Norm "l2" and domain; eps is not read.
        budget: `searches` values of c per example, `steps` of Adam for each, `step_size` of Adam (0: 0.01 in tanh
            space, 6 / steps if that is more).
        generator: Not read: there is nothing random here.

    Returns:
        (B, *shape) like x, detached: the nearest misclassified point found; x itself where none was found or the
        model is wrong already.

    Raises:
        UserError: Inputs outside the domain, or a model without gradient.
        ValueError: Another norm than l2.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> x, y = torch.tensor([[0.2, 0.7]]), torch.tensor([0])
        >>> z = carlini_wagner_l2(net, x, y, threat=Threat("l2", torch.inf, None), budget=Budget(steps=100))
        >>> bool((z - torch.tensor([[0.0, 0.7]])).abs().max() < 1e-2)
        True
    """
    if threat.norm != "l2":
        raise ValueError(f"the attack of Carlini and Wagner minimises l2; received norm={threat.norm!r}")
    threat.admit(x)
    budget = budget or Budget(steps=200)
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        nearest = Nearest(model, x_BX, y_B, threat)
        index_S, _ = nearest.right()
        if len(index_S) == 0:
            return nearest.point_BX
        c_S, rate_S = _first_guess(nearest, index_S, budget)
        low_S, high_S = torch.zeros_like(c_S), torch.full_like(c_S, torch.inf)
        for _ in range(budget.searches):
            found_S = _descend(nearest, index_S, c_S, rate_S, budget.steps)
            low_S, high_S = torch.where(found_S, low_S, c_S), torch.where(found_S, c_S, high_S)
            between_S = (low_S * high_S).sqrt()
            c_S = torch.where(high_S.isinf(), low_S * FACTOR, torch.where(low_S == 0, high_S / FACTOR, between_S))
            c_S = c_S.clamp(1e-20, 1e20)
            keep = high_S > CLOSE * low_S
            index_S, c_S, rate_S, low_S, high_S = (t[keep] for t in (index_S, c_S, rate_S, low_S, high_S))
            if len(index_S) == 0:
                break
        return nearest.draw_closer()


def _first_guess(nearest: Nearest, index_S: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
    """Return what is right for a linear model: c, and the step of Adam for each example."""
    x_SX = nearest.x_BX[index_S].requires_grad_()
    gap_S, _ = clear_gap(nearest.model(x_SX), nearest.y_B[index_S])
    w_SX = slope(gap_S, x_SX)
    steepness_S, gap_S = length(w_SX, "l2"), gap_S.detach().abs()
    c_S = 2 * gap_S / steepness_S.square()
    c_S = torch.where(c_S.isfinite() & (c_S > 0), c_S, torch.ones_like(c_S)).clamp(1e-10, 1e10)
    if nearest.threat.domain is not None or budget.step_size:
        return c_S, torch.full_like(c_S, budget.step_size or max(LEARNING_RATE, 6 / budget.steps))
    rate_S = REACH * gap_S * length(w_SX, "linf") / steepness_S.square()
    return c_S, torch.where(rate_S.isfinite() & (rate_S > 0), rate_S, torch.full_like(rate_S, LEARNING_RATE))


def _descend(nearest: Nearest, index_S: Tensor, c_S: Tensor, rate_S: Tensor, steps: int) -> Tensor:
    """Run Adam from x for one c per example, offer every iterate, return where one was misclassified."""
    threat, found_B = nearest.threat, torch.zeros(len(nearest.y_B), dtype=torch.bool, device=index_S.device)
    started_S, every = index_S, max(1, steps // 10)
    x_SX, y_S = nearest.x_BX[index_S], nearest.y_B[index_S]
    v_SX = _to_variable(x_SX, threat.domain)
    first_SX, second_SX = torch.zeros_like(v_SX), torch.zeros_like(v_SX)
    before_S = torch.full_like(c_S, torch.inf)
    for step in range(1, steps + 1):
        z_SX, inner_SX = _to_input(v_SX, x_SX, threat.domain)
        z_SX = z_SX.requires_grad_()
        gap_S, broken_S = clear_gap(nearest.model(z_SX), y_S)
        hinge_SX = slope(-gap_S.clamp(max=0), z_SX)
        z_SX, gap_S = z_SX.detach(), gap_S.detach()
        nearest.offer(index_S, z_SX, broken_S)
        found_B[index_S] |= broken_S
        move_SX = z_SX - x_SX
        gradient_SX = (2 * move_SX + per_example(c_S, x_SX) * hinge_SX) * inner_SX
        first_SX = BETAS[0] * first_SX + (1 - BETAS[0]) * gradient_SX
        second_SX = BETAS[1] * second_SX + (1 - BETAS[1]) * gradient_SX.square()
        root_SX = (second_SX / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        v_SX = v_SX - per_example(rate_S, x_SX) * first_SX / (1 - BETAS[0] ** step) / root_SX
        if step % every == 0 and step < steps:
            loss_S = move_SX.flatten(1).square().sum(1) - c_S * gap_S.clamp(max=0)
            keep = loss_S <= SLOW * before_S
            index_S, x_SX, y_S, c_S, rate_S, before_S = (t[keep] for t in (index_S, x_SX, y_S, c_S, rate_S, loss_S))
            v_SX, first_SX, second_SX = v_SX[keep], first_SX[keep], second_SX[keep]
            if len(index_S) == 0:
                break
    return found_B[started_S]


def _to_variable(x_SX: Tensor, domain: tuple[float, float] | None) -> Tensor:
    """Return the unbounded variable whose image is x."""
    if domain is None:
        return torch.zeros_like(x_SX)
    centre, half = (domain[0] + domain[1]) / 2, (domain[1] - domain[0]) / 2
    return torch.atanh(((x_SX - centre) / half).clamp(-1, 1) / (1 + MARGIN))


def _to_input(v_SX: Tensor, x_SX: Tensor, domain: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Return the input that belongs to a variable, and its derivative, coordinate by coordinate."""
    if domain is None:
        return x_SX + v_SX, torch.ones_like(v_SX)
    centre, half = (domain[0] + domain[1]) / 2, (domain[1] - domain[0]) / 2
    share_SX = v_SX.tanh()
    inner_SX = half * (1 + MARGIN) * (1 - share_SX.square())
    return (centre + half * (1 + MARGIN) * share_SX).clamp(*domain), inner_SX
