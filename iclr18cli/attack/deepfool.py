"""DeepFool (Moosavi-Dezfooli, Fawzi and Frossard 2016): step after step onto the nearest linearised boundary.

B batch · S examples not broken yet · X the axes of one input · C candidate classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.hyperplane import likeliest_wrong, nearest_boundary, onto_hyperplane
from iclr18cli.attack.nearest import Nearest, clear_gap
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.models.modes import evaluating

OVERSHOOT = 0.02
"""The paper's eta: how far beyond the boundary the sum of all steps is stretched."""

BEYOND = 0.01
"""How far behind the boundary a step aims, as a share of the clean gap: or it would only be reached in the limit."""

STRETCHES = (1.05, 1.1, 1.2, 1.5, 2.0, 4.0)
"""Further stretches of the sum that are tried on points which the last step leaves at the boundary."""


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Walk to the nearest decision boundary, taking the model for linear at every step.

    Moosavi-Dezfooli et al. (2016), Algorithm 2, on the whole batch. The overshoot stretches the sum of the steps, not
    each of them, as there. A search along the segment from x to the point found ends it.

    Deviations: a step aims 1 % of the clean gap behind the boundary, which would else be reached in the limit only.
    With a domain there is a second walk whose steps are the shortest onto the plane inside the domain, where the first
    one's are the shortest anywhere, followed by a clip; the nearer point counts.

    Args:
        model: Maps (B, *shape) to (B, K) logits.
        x: (B, *shape) float inputs inside the threat's domain, of any rank.
        y: (B,) int64 true classes.
        threat: Norm and domain; eps is not read.
        budget: `steps`, at most so many (the paper needs about 3, at most 50); `target_classes`, the wrong classes
            looked at, one backward pass each.
        generator: Not read: there is nothing random here.

    Returns:
        (B, *shape) like x, detached: the nearest misclassified point found; x itself where none was found or the
        model is wrong already.

    Raises:
        UserError: Inputs outside the domain, or a model without gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> z = deepfool(net, torch.tensor([[0.2, 0.7]]), torch.tensor([0]), threat=Threat("l2", torch.inf, None))
        >>> [round(v, 4) + 0.0 for v in z[0].tolist()]
        [0.0, 0.7]
    """
    threat.admit(x)
    budget = budget or Budget(steps=50)
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        nearest = Nearest(model, x_BX, y_B, threat)
        index_S, logits_SK = nearest.right()
        candidates_SC = likeliest_wrong(logits_SK, y_B[index_S], budget.target_classes)
        for box in (None,) if threat.domain is None else (None, threat.domain):
            _walk(nearest, index_S, candidates_SC, budget.steps, box)
        return nearest.draw_closer()


def _walk(
    nearest: Nearest, index_S: Tensor, candidates_SC: Tensor, steps: int, box: tuple[float, float] | None
) -> None:
    """Step onto linearised boundaries until each example is misclassified; `box` is what a step has to respect."""
    model, threat = nearest.model, nearest.threat
    x_SX, y_S = nearest.x_BX[index_S], nearest.y_B[index_S]
    total_SX, z_SX = torch.zeros_like(x_SX), x_SX
    beyond_S: Tensor | None = None
    for _ in range(steps):
        if len(index_S) == 0:
            return
        gap_S, w_SX = nearest_boundary(model, z_SX, y_S, candidates_SC, threat.norm)
        beyond_S = BEYOND * gap_S.abs() if beyond_S is None else beyond_S
        total_SX = total_SX + onto_hyperplane(z_SX, w_SX, beyond_S - gap_S, norm=threat.norm, domain=box)
        z_SX = threat.clip(x_SX + (1 + OVERSHOOT) * total_SX)
        keep = ~_offer(nearest, index_S, z_SX)
        index_S, x_SX, y_S, z_SX, total_SX, candidates_SC, beyond_S = (
            t[keep] for t in (index_S, x_SX, y_S, z_SX, total_SX, candidates_SC, beyond_S)
        )
    for stretch in STRETCHES:
        if len(index_S) == 0:
            return
        keep = ~_offer(nearest, index_S, threat.clip(x_SX + stretch * total_SX))
        index_S, x_SX, total_SX = index_S[keep], x_SX[keep], total_SX[keep]


def _offer(nearest: Nearest, index_S: Tensor, z_SX: Tensor) -> Tensor:
    """Judge points, hand the misclassified ones to the keeper and return which they are."""
    with torch.no_grad():
        _, broken_S = clear_gap(nearest.model(z_SX), nearest.y_B[index_S])
    nearest.offer(index_S, z_SX, broken_S)
    return broken_S
