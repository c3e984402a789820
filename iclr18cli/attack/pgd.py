"""Projected gradient ascent on the input (Madry et al. 2018), its single step, and random baselines without gradients.

B batch · S survivors, the examples not broken yet · X the axes of one input · D coordinates · K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import Goal
from iclr18cli.attack.survivors import Survivors, climbing, judge, look
from iclr18cli.attack.threat import Budget, Threat, per_example, unit
from iclr18cli.models.modes import evaluating

L1_SHARE = 0.01
"""Share of the coordinates that an l1 step moves, at least one (after SLIDE, Tramèr and Boneh 2019)."""


def steepest(gradient_SX: Tensor, threat: Threat, z_SX: Tensor | None = None) -> Tensor:
    """Return a direction of length 1 in the threat's norm that raises the objective fastest; 0 for no gradient.

    linf: the signs of the gradient; l2: the gradient at length 1. l1: the signs at the 1 % of coordinates (at least
    one) with the largest gradient, of equal size: the fastest of all, the one largest coordinate, would need as many
    steps as coordinates have to move.

    Args:
        gradient_SX: (S, *shape) gradients.
        threat: Norm and domain.
        z_SX: (S, *shape) where the step starts. l1 then leaves out coordinates that stand at the edge of the domain:
            a step would be spent on them in vain.
    """
    gradient_SX = gradient_SX.nan_to_num(0.0, 0.0, 0.0)
    if threat.norm == "linf":
        return gradient_SX.sign()
    if threat.norm == "l2":
        return unit(gradient_SX)
    if z_SX is not None and threat.domain is not None:
        low, high = threat.domain
        stuck_SX = ((z_SX <= low) & (gradient_SX < 0)) | ((z_SX >= high) & (gradient_SX > 0))
        gradient_SX = gradient_SX.masked_fill(stuck_SX, 0.0)
    flat_SD = gradient_SX.flatten(1)
    place_SK = flat_SD.abs().topk(max(1, round(L1_SHARE * flat_SD.shape[1])), dim=1).indices
    sign_SK = flat_SD.gather(1, place_SK).sign()
    size_S1 = sign_SK.abs().sum(1, keepdim=True).clamp(min=1)
    return torch.zeros_like(flat_SD).scatter(1, place_SK, sign_SK / size_S1).reshape(gradient_SX.shape)


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
    with climbing(model):
        run = Survivors(x, Goal(budget.loss, y, targets))
        step_length = budget.step_length(threat.eps)
        for restart in range(budget.restarts if threat.eps > 0 else 0):
            if len(run) == 0:
                break
            z_SX = run.x_SX if restart == 0 else threat.random(run.x_SX, generator)
            for step in range(budget.steps):
                value_S, broken_S, gradient_SX = look(model, z_SX, run.goal)
                run.note(z_SX, value_S, broken_S)
                keep_S = run.thin(step)
                if keep_S is not None:
                    z_SX, gradient_SX = z_SX[keep_S], gradient_SX[keep_S]
                if len(run) == 0:
                    break
                z_SX = threat.bring_back(z_SX + step_length * steepest(gradient_SX, threat, z_SX), run.x_SX)
            else:
                run.note(z_SX, *judge(model, z_SX, run.goal))
                run.thin()
    return run.points()


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Take one steepest step of length eps from x (Goodfellow et al. 2015 for linf), whether or not it helps.

    Args, Returns: As for `pgd`; only the loss of the budget is used, and nothing is random.
    """
    threat.admit(x)
    with climbing(model):
        x_BX = x.detach().clone()
        if threat.eps == 0 or len(x) == 0:
            return x_BX
        _, broken_B, gradient_BX = look(model, x_BX, Survivors(x, Goal((budget or Budget()).loss, y, targets)).goal)
        z_BX = threat.bring_back(x_BX + threat.eps * steepest(gradient_BX, threat, x_BX), x_BX)
        return torch.where(per_example(broken_B, x_BX), x_BX, z_BX)


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
    linf, the sphere for l2, for l1 the points where few coordinates share eps), and keeps the first that is
    misclassified, else the one with the highest loss. Needs no gradient.

    Args, Returns: As for `pgd`.
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad(), evaluating(model):
        run = Survivors(x, Goal(budget.loss, y))
        run.note(x, *judge(model, x, run.goal))
        for draw in range(1, budget.steps * budget.restarts + 1 if threat.eps > 0 else 1):
            run.thin()
            if len(run) == 0:
                break
            z_SX = threat.random(run.x_SX, generator)
            if draw % 2 == 0:
                z_SX = threat.bring_back(run.x_SX + threat.eps * steepest(z_SX - run.x_SX, threat), run.x_SX)
            run.note(z_SX, *judge(model, z_SX, run.goal))
    return run.points()


def random_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Climb the margin without gradients: a random step is taken if it raises the margin.

    The (1+1) evolution strategy with the 1/5 success rule (Rechenberg 1973): steps are uniform in a ball of the
    threat's norm around the best point; its radius, eps at first, grows by 1.5 at a success and shrinks by 1.5^(-1/4)
    at a failure, within [eps / 1000, 2 * eps]. For inputs of few coordinates and models without gradient; on images
    Square Attack finds far more with as many queries.

    Args, Returns: As for `pgd`; of the budget, `queries` forward passes per example are used, that at x included.
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    around = Threat(threat.norm, 1.0, None)
    with torch.no_grad(), evaluating(model):
        run = Survivors(x, Goal("margin", y, targets))
        run.note(x, *judge(model, x, run.goal))
        radius_S = torch.full_like(run.value_S, threat.eps)
        for query in range(1, budget.queries if threat.eps > 0 else 1):
            keep_S = run.thin(query)
            if keep_S is not None:
                radius_S = radius_S[keep_S]
            if len(run) == 0:
                break
            step_SX = per_example(radius_S, x) * around.random(torch.zeros_like(run.x_SX), generator)
            z_SX = threat.bring_back(run.best_SX + step_SX, run.x_SX)
            better_S = run.note(z_SX, *judge(model, z_SX, run.goal))
            radius_S = radius_S * torch.where(better_S, 1.5, 1.5**-0.25).to(radius_S.dtype)
            radius_S = radius_S.clamp(threat.eps / 1000, 2 * threat.eps)
    return run.points()
