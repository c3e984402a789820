"""Projected gradient ascent on the input (Madry et al. 2018), and random noise as its baseline.

B batch · S survivors, the examples not broken yet · X the axes of one input · K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.threat import Budget, Threat, unit
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating


def steepest(gradient_SX: Tensor, threat: Threat) -> Tensor:
    """Return the direction of length 1 in the threat's norm that raises the objective fastest; 0 for no gradient."""
    gradient_SX = gradient_SX.nan_to_num(0.0, 0.0, 0.0)
    return gradient_SX.sign() if threat.norm == "linf" else unit(gradient_SX)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Find inputs near x that the model gets wrong, or where its loss is as high as this attack can make it.

    Madry et al. (2018), §2.1, with four repairs: losses are summed, so that an example's path does not depend on its
    batch; the best iterate of every example is kept, not the last; the first start is x itself and the others are
    uniform in the ball; examples leave the batch once broken. The model is held in evaluation mode without parameter
    gradients, and gets every flag back.

    Args:
        model: Maps (B, *shape) to (B, K) logits.
        x: (B, *shape) float inputs inside the threat's domain, of any rank.
        y: (B,) int64 true classes.
        threat: Norm, radius and domain.
        budget: Steps, restarts, step size and loss.
        generator: Source of all randomness; None: a fresh one with seed 0. The global generators are never touched.
        targets: (B,) classes to reach instead of leaving y; an example is then broken when it is predicted so.

    Returns:
        (B, *shape) like x, detached; x itself where eps is 0 or the model is wrong already.

    Raises:
        UserError: Inputs outside the domain, or a model without gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> z = pgd(net, torch.tensor([[0.2, 0.0]]), torch.tensor([0]), threat=Threat("l2", 0.5, None))
        >>> net(z).argmax(1).item()
        1
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    targeted = targets is not None
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        aim_B = targets.detach().clone() if targets is not None else y_B
        best_BX, best_B = x_BX.clone(), torch.full((len(x_BX),), -torch.inf, dtype=x_BX.dtype, device=x_BX.device)
        index_S = torch.arange(len(x_BX), device=x_BX.device)
        if threat.eps == 0:
            return best_BX
        for restart in range(budget.restarts):
            if len(index_S) == 0:
                break
            x_SX = x_BX[index_S]
            z_SX = x_SX if restart == 0 else threat.random(x_SX, generator)
            index_S = _climb(
                model, x_SX, z_SX, y_B[index_S], aim_B[index_S], index_S, best_BX, best_B, threat, budget, targeted
            )
    return best_BX


def _climb(
    model: nn.Module,
    x_SX: Tensor,
    z_SX: Tensor,
    y_S: Tensor,
    aim_S: Tensor,
    index_S: Tensor,
    best_BX: Tensor,
    best_B: Tensor,
    threat: Threat,
    budget: Budget,
    targeted: bool,
) -> Tensor:
    """Run one restart, write better iterates into best_BX and best_B, return the indices of those still unbroken."""
    step_length = budget.step_length(threat.eps)
    for step in range(budget.steps + 1):
        z_SX = z_SX.detach().requires_grad_(step < budget.steps)
        with torch.set_grad_enabled(step < budget.steps):
            logits_SK = model(z_SX)
            value_S = objective(logits_SK, y_S, loss=budget.loss, targets_S=aim_S if targeted else None)
        broken_S = (logits_SK.argmax(1) == aim_S) == targeted
        better_S = broken_S | (value_S.detach() > best_B[index_S])
        best_BX[index_S[better_S]] = z_SX.detach()[better_S]
        best_B[index_S[better_S]] = value_S.detach()[better_S].to(best_B.dtype)
        if step == budget.steps:
            return index_S[~broken_S]
        if not value_S.requires_grad:
            raise UserError(
                "This attack needs gradients, and the model's output has none with respect to its input.",
                why="a step of the model rounds, detaches or leaves torch",
                fix="--attack noise, or a straight-through gradient in the model",
            )
        (gradient_SX,) = torch.autograd.grad(value_S.sum(), z_SX, materialize_grads=True)
        if broken_S.any():
            keep = ~broken_S
            index_S, y_S, aim_S, x_SX, gradient_SX = (t[keep] for t in (index_S, y_S, aim_S, x_SX, gradient_SX))
            z_SX = z_SX.detach()[keep]
            if len(index_S) == 0:
                break
        z_SX = threat.bring_back(z_SX.detach() + step_length * steepest(gradient_SX, threat), x_SX)
    return index_S


def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Try random points of the threat set: what any attack with gradients must beat.

    Draws steps * restarts points per example, in turn uniform in the ball and from its extreme points (corners for
    linf, the sphere for l2), and keeps the first that is misclassified, else the one with the highest loss. Needs no
    gradient.

    Args, Returns: As for `pgd`.
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad(), evaluating(model):
        best_BX, best_B = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        index_S = torch.arange(len(x), device=x.device)
        for draw in range(budget.steps * budget.restarts + 1):
            x_SX = x[index_S]
            if draw == 0 or threat.eps == 0:
                z_SX = x_SX
            else:
                z_SX = threat.random(x_SX, generator)
                if draw % 2 == 0:
                    z_SX = threat.bring_back(x_SX + threat.eps * steepest(z_SX - x_SX, threat), x_SX)
            logits_SK = model(z_SX)
            value_S = objective(logits_SK, y[index_S], loss=budget.loss)
            broken_S = logits_SK.argmax(1) != y[index_S]
            better_S = broken_S | (value_S > best_B[index_S])
            best_BX[index_S[better_S]] = z_SX[better_S]
            best_B[index_S[better_S]] = value_S[better_S].to(best_B.dtype)
            index_S = index_S[~broken_S]
            if len(index_S) == 0 or threat.eps == 0:
                break
    return best_BX
