"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples").

B batch · S examples of one run · X the axes of one input · C candidate classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.hyperplane import length, likeliest_wrong, nearest_boundary, onto_hyperplane
from iclr18cli.attack.nearest import Nearest, clear_gap
from iclr18cli.attack.threat import Budget, Threat, per_example
from iclr18cli.models.modes import evaluating

ALPHA_MAX = 0.1
"""Largest weight of the step from x itself."""

ETA = 1.05
"""Overshoot beyond the hyperplane."""

BETA = 0.9
"""Share of the way from x that is kept after a misclassified point."""


def fab_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find near misclassified points by walking along one boundary of the true class after another (FAB-T).

    Croce and Hein (2020), Algorithm 1 and §3.4: for each of the likeliest wrong classes t one run of projections onto
    the linearised boundary f_t = f_y inside the domain, from the iterate and from x, mixed; after each misclassified
    point the iterate is pulled back towards x. One backward pass per step, whatever the number of classes.

    With a finite eps an example is done once a misclassified point inside eps is known, as in AutoAttack: what is
    returned then lies within eps, but is not as near as the attack can make it. With an infinite eps every example
    gets every target and a final search along the segment from x.

    Args:
        model: Maps (B, *shape) to (B, K) logits.
        x: (B, *shape) float inputs inside the threat's domain, of any rank.
        y: (B,) int64 true classes.
        threat: Norm, domain, and the radius at which an example is done.
        budget: `steps` per run (the paper's 100), `restarts` per class, the first from x, `target_classes`.
        generator: Source of the random restarts; None: a fresh one with seed 0. The global ones are never touched.

    Returns:
        (B, *shape) like x, detached: the nearest misclassified point found, which may lie beyond eps; x itself where
        none was found or the model is wrong already.

    Raises:
        UserError: Inputs outside the domain, or a model without gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> z = fab_targeted(net, torch.tensor([[0.2, 0.7]]), torch.tensor([0]), threat=Threat("l1", torch.inf, None))
        >>> [round(v, 4) + 0.0 for v in z[0].tolist()]
        [0.0, 0.7]
    """
    return _fab(model, x, y, threat, budget, generator, targeted=True)


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find near misclassified points by walking along the nearest boundary of the true class (untargeted FAB).

    Croce and Hein (2020), Algorithm 1: as `fab_targeted`, but each step takes the nearest of the boundaries to the
    `budget.target_classes` likeliest wrong classes, at one backward pass for each.

    Args, Returns, Raises: As for `fab_targeted`.
    """
    return _fab(model, x, y, threat, budget, generator, targeted=False)


def _fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    budget: Budget | None,
    generator: torch.Generator | None,
    *,
    targeted: bool,
) -> Tensor:
    threat.admit(x)
    budget = budget or Budget(steps=100, restarts=1)
    generator = generator or torch.Generator().manual_seed(0)
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        nearest = Nearest(model, x_BX, y_B, threat)
        index_S, logits_SK = nearest.right()
        wrong_SC = likeliest_wrong(logits_SK, y_B[index_S], budget.target_classes)
        runs = [wrong_SC[:, k : k + 1] for k in range(wrong_SC.shape[1])] if targeted else [wrong_SC]
        for candidates_SC in runs:
            for restart in range(budget.restarts):
                open_S = _open(nearest, index_S)
                if not bool(open_S.any()):
                    break
                _run(nearest, index_S[open_S], candidates_SC[open_S], budget.steps, generator if restart else None)
        return nearest.draw_closer()


def _open(nearest: Nearest, index_S: Tensor) -> Tensor:
    """Return which examples are still to be attacked: all for an infinite eps, else those not broken within it."""
    eps = nearest.threat.eps
    distance_S = nearest.distance_B[index_S]
    return (distance_S > eps) | torch.full_like(distance_S, eps == torch.inf, dtype=torch.bool)


def _run(
    nearest: Nearest, index_S: Tensor, candidates_SC: Tensor, steps: int, generator: torch.Generator | None
) -> None:
    """Walk from x, or from a random point near it if a generator is given, and offer what turns out misclassified."""
    threat, model = nearest.threat, nearest.model
    x_SX, y_S = nearest.x_BX[index_S], nearest.y_B[index_S]
    z_SX = x_SX if generator is None else _random_start(nearest, index_S, generator)
    for step in range(steps):
        gap_S, w_SX = nearest_boundary(model, z_SX, y_S, candidates_SC, threat.norm)
        # The same plane as seen from x: w.(x + delta) = w.z - gap.
        from_x_S = (w_SX * (z_SX - x_SX)).flatten(1).sum(1) - gap_S
        delta_2SX = onto_hyperplane(
            torch.cat([z_SX, x_SX]),
            torch.cat([w_SX, w_SX]),
            torch.cat([-gap_S, from_x_S]),
            norm=threat.norm,
            domain=threat.domain,
        )
        size_S, size_x_S = length(delta_2SX, threat.norm).clamp(min=1e-12).chunk(2)
        delta_SX, delta_x_SX = delta_2SX.chunk(2)
        alpha = per_example((size_S / (size_S + size_x_S)).clamp(max=ALPHA_MAX), z_SX)  # Eq. (9)
        z_SX = threat.clip((1 - alpha) * (z_SX + ETA * delta_SX) + alpha * (x_SX + ETA * delta_x_SX))  # Eq. (10)
        with torch.no_grad():
            _, broken_S = clear_gap(model(z_SX), y_S)
        nearest.offer(index_S, z_SX, broken_S)
        z_SX = torch.where(per_example(broken_S, z_SX), x_SX + BETA * (z_SX - x_SX), z_SX)  # backward step
        # Leaving the batch costs a look at the device's numbers: not at every step.
        if threat.eps < torch.inf and step % 4 == 3:
            open_S = _open(nearest, index_S)
            if not bool(open_S.all()):
                index_S, x_SX, y_S, z_SX, candidates_SC = (t[open_S] for t in (index_S, x_SX, y_S, z_SX, candidates_SC))
                if len(index_S) == 0:
                    return


def _random_start(nearest: Nearest, index_S: Tensor, generator: torch.Generator) -> Tensor:
    """Draw points from the ball of half the radius min(nearest distance so far, eps); x where both are infinite."""
    x_SX, threat = nearest.x_BX[index_S], nearest.threat
    radius_S = nearest.distance_B[index_S].clamp(max=threat.eps).nan_to_num(posinf=0.0).to(x_SX.dtype)
    unit_SX = Threat(threat.norm, 1.0, None).random(torch.zeros_like(x_SX), generator)
    return threat.clip(x_SX + unit_SX * per_example(radius_S / 2, x_SX))
