"""Training for interval bounds: the loss at the worst logits the box allows (Gowal et al. 2018, section 3).

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.attack.threat import Norm, Threat
from iclr18cli.certify.bounds import intervals
from iclr18cli.certify.bounds.network import chain


@dataclass(frozen=True)
class Ramp:
    """Radius and weight of the clean loss as functions of the step (Gowal et al. 2018, section 4).

    Args:
        eps: Final radius.
        steps: Steps of the whole training.
        warm: Share of them at radius 0 and weight 1.
        ramp: Share of them over which the radius grows to eps and the weight falls, both linearly.
        kappa: Final weight of the clean loss, in [0, 1].
    """

    eps: float
    steps: int
    warm: float = 0.05
    ramp: float = 0.5
    kappa: float = 0.5

    def at(self, step: int) -> tuple[float, float]:
        """Return (radius, weight of the clean loss) of a step, from 1.

        Example:
            >>> Ramp(0.1, 100, warm=0.1, ramp=0.5).at(5), Ramp(0.1, 100, warm=0.1, ramp=0.5).at(100)
            ((0.0, 1.0), (0.1, 0.5))
        """
        done = min(max((step - self.warm * self.steps) / max(1.0, self.ramp * self.steps), 0.0), 1.0)
        return self.eps * done, 1.0 - (1.0 - self.kappa) * done


def interval_loss(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, kappa: float, norm: Norm = "linf",
    domain: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:  # fmt: skip
    """Return kappa * cross-entropy + (1 - kappa) * cross-entropy at the worst logits of the box, a mean over the batch.

    The worst logits are minus the lower bounds of z_y - z_j, 0 for y itself: no point of the ball has a larger loss.
    Differentiable in the parameters; in the model's own arithmetic, so it is no certificate.

    Args:
        model: Layers as `chain` knows them.
        x, y: (B, *X) inputs in the domain, (B,) classes.
        eps: Radius, >= 0.
        kappa: Weight of the clean loss, in [0, 1].
        norm: Norm of the ball.
        domain: (lo, hi) it is cut with; None: all of R^d.
    """
    clean = F.cross_entropy(model(x), y)
    if kappa >= 1:
        return clean
    box = intervals.of_threat(x, Threat(norm, eps, domain))
    worst = F.cross_entropy(-intervals.margins(chain(model), box, y), y)
    return kappa * clean + (1 - kappa) * worst


def robust_loss_bound(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    """Return the cross-entropy at the worst logits of the box, (B,), in the model's own arithmetic."""
    with torch.no_grad():
        box = intervals.of_threat(x, threat)
        return F.cross_entropy(-intervals.margins(chain(model), box, y), y, reduction="none")
