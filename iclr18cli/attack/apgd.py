"""Auto-PGD (Croce and Hein 2020; for l1 Croce and Hein 2021): gradient ascent that finds its own step sizes.

B batch · S survivors, the examples not broken yet · X the axes of one input · D coordinates · K classes
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack.apgd_steps import Halving, Path, Sparse
from iclr18cli.attack.losses import Goal
from iclr18cli.attack.survivors import Survivors, climbing, judge, look
from iclr18cli.attack.threat import Budget, Threat, per_example, unit


def apgd(
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

    Croce and Hein (2020), Algorithm 1: momentum, and for every example a step that starts at 2 * eps and is halved,
    with a return to the best point, at checkpoints where progress has stalled. For l1 (Croce and Hein 2021): sparse
    steps of eps, projected onto ball and domain together, inside balls of 3, 2 and 1 times eps in turn. Starts are
    random on the boundary of the ball, as in the authors' code; x itself counts as a point found.

    Args:
        model, x, y, threat, generator, targets: As for `iclr18cli.attack.pgd.pgd`.
        budget: `steps`, `restarts` and `loss`; the step size is the attack's own.

    Returns:
        (B, *shape) like x: the first misclassified point found, else the one of highest loss, x itself included.

    Raises:
        UserError: Inputs outside the domain, a model without gradient, or the DLR loss with too few classes.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> z = apgd(net, torch.tensor([[0.2, 0.0]]), torch.tensor([0]), threat=Threat("l2", 0.3, None))
        >>> net(z).argmax(1).item()
        1
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    with climbing(model):
        run = Survivors(x, Goal(budget.loss, y, targets))
        if threat.eps == 0 or len(run) == 0:
            return run.points()
        run.note(run.x_SX, *judge(model, run.x_SX, run.goal))
        run.thin()
        for _ in range(budget.restarts):
            _start(model, run, threat, budget.steps, generator)
    return run.points()


def apgd_ce(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Run `apgd` on the cross-entropy, whatever loss the budget names."""
    budget = replace(budget or Budget(), loss="cross-entropy")
    return apgd(model, x, y, threat=threat, budget=budget, generator=generator, targets=targets)


def apgd_dlr(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Run `apgd` on the DLR loss, whatever loss the budget names."""
    budget = replace(budget or Budget(), loss="dlr")
    return apgd(model, x, y, threat=threat, budget=budget, generator=generator, targets=targets)


def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Run `apgd` towards each of the wrong classes that are likeliest at x, in turn, until any wrong class is reached.

    The loss is the targeted DLR (Croce and Hein 2020, Eq. (7)), whatever the budget names; it needs 4 classes, with
    fewer the margin of the target takes its place.

    Args:
        model, x, y, threat, generator: As for `apgd`.
        budget: `steps`, `restarts` (for each class) and `target_classes`.

    Returns:
        As for `apgd`. Values of different targets are comparable: the largest is that of the likeliest wrong class.
    """
    threat.admit(x)
    budget = budget or Budget()
    generator = generator or torch.Generator().manual_seed(0)
    with climbing(model):
        start = Survivors(x, Goal("margin", y))
        if threat.eps == 0 or len(start) == 0:
            return start.points()
        with torch.no_grad():
            logits_BK = model(start.x_SX)
        classes = logits_BK.shape[1]
        wrong_BK = logits_BK.scatter(1, start.goal.y[:, None], -torch.inf)
        ranked_BT = wrong_BK.topk(min(budget.target_classes, classes - 1), dim=1).indices
        goal = Goal("dlr" if classes >= 4 else "margin", start.goal.y, ranked_BT[:, 0], exact=False)
        run = Survivors(x, goal)
        run.note(run.x_SX, goal.value(logits_BK), goal.broken(logits_BK))
        for rank in range(ranked_BT.shape[1]):
            keep_S = run.thin()
            ranked_BT = ranked_BT if keep_S is None else ranked_BT[keep_S]
            run.goal = replace(run.goal, targets=ranked_BT[:, rank])
            for _ in range(budget.restarts):
                keep_S = _start(model, run, threat, budget.steps, generator)
                ranked_BT = ranked_BT if keep_S is None else ranked_BT[keep_S]
    return run.points()


def _start(model: nn.Module, run: Survivors, threat: Threat, steps: int, generator: torch.Generator) -> Tensor | None:
    """Run one random start on the survivors; return the rows that stay, None if all do."""
    if len(run) == 0:
        return None
    if threat.norm != "l1":
        run.note(*_climb(model, run, _on_boundary(run.x_SX, threat, generator), threat, steps))
        return run.thin()
    # Croce and Hein (2021): 3/10, 3/10 and the rest of the steps, the best point handed down from ball to ball.
    z_SX, dense = _on_boundary(run.x_SX, replace(threat, eps=3 * threat.eps), generator), True
    early = 3 * steps // 10
    for radius, count in ((3, early), (2, early), (1, steps - 2 * early)):
        if count == 0:
            continue
        ball = replace(threat, eps=radius * threat.eps)
        result = _climb(model, run, ball.bring_back(z_SX, run.x_SX), ball, count, wins=radius == 1, dense=dense)
        z_SX, dense = result[0], False
    run.note(*result)
    return run.thin()


def _on_boundary(x_SX: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Draw a start: linf, a point of the cube moved out to its surface; l2, of the sphere; l1, normal and projected."""
    options = dict[str, Any](dtype=x_SX.dtype, device=generator.device, generator=generator)
    if threat.norm == "linf":
        draw_SX = 2 * torch.rand(x_SX.shape, **options) - 1
        largest_S = draw_SX.flatten(1).abs().amax(1).clamp(min=torch.finfo(x_SX.dtype).tiny)
        delta_SX = threat.eps * draw_SX / per_example(largest_S, draw_SX)
    else:
        draw_SX = torch.randn(x_SX.shape, **options)
        delta_SX = threat.eps * unit(draw_SX) if threat.norm == "l2" else draw_SX
    return threat.bring_back(x_SX + delta_SX.to(x_SX.device), x_SX)


def _climb(
    model: nn.Module, run: Survivors, z_SX: Tensor, threat: Threat, steps: int, *, wins: bool = True, dense: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Ascend from z; return the best points, their values and where broken, of every example in `run`.

    Args:
        wins: Misclassified points count as broken; False: the ball is not the real one, go on.
        dense: The start says nothing about how sparse steps should be (l1).
    """
    own = Survivors(run.x_SX, run.goal)
    value_S, broken_S, gradient_SX = look(model, z_SX, own.goal)
    own.note(z_SX, value_S, broken_S & wins)
    path = Path(z_SX, z_SX, value_S, gradient_SX, gradient_SX)
    rule = (Sparse if threat.norm == "l1" else Halving).first(own, threat, dense)
    stops = rule.stops(steps)
    for step in range(1, steps + 1):
        keep_S = own.thin(step)
        if keep_S is not None:
            path, rule = path.at(keep_S), rule.at(keep_S)
        if len(own) == 0:
            break
        z_SX = rule.move(path, own.x_SX, threat, first=step == 1)
        if step == steps:
            value_S, broken_S = judge(model, z_SX, own.goal)
            own.note(z_SX, value_S, broken_S & wins)
            break
        value_S, broken_S, gradient_SX = look(model, z_SX, own.goal)
        better_S = own.note(z_SX, value_S, broken_S & wins)
        best_gradient_SX = torch.where(per_example(better_S, z_SX), gradient_SX, path.best_gradient)
        rule.watch(value_S > path.value)
        path = Path(z_SX, path.z, value_S, gradient_SX, best_gradient_SX)
        if step in stops:
            back_S = rule.adapt(own, threat)
            back_SX = per_example(back_S, z_SX)
            path.z = torch.where(back_SX, own.best_SX, z_SX)
            path.gradient = torch.where(back_SX, best_gradient_SX, gradient_SX)
            path.value = torch.where(back_S, own.value_S, value_S)
    return own.all()
