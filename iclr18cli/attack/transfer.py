"""A transfer attack: points made on one model, tried on another that is only asked for its answer.

B batch · S points still unbroken · X the axes of one input
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.pgd import steepest
from iclr18cli.attack.stages import Stage
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.models.modes import evaluating
from iclr18cli.plugin import AttackSpec

DECAY = 1.0
"""Momentum of MI-FGSM (Dong et al. 2018, section 3.1)."""


@dataclass(frozen=True)
class Transfer:
    """Climb the loss of `source`, with momentum and to the end, and try every restart's last point on the model.

    MI-FGSM (Dong et al. 2018, Algorithm 1) with steps of the threat's norm. A point does not stop where the source is
    fooled: what fools it by a hair seldom fools another model.
    """

    source: nn.Module

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Return points near x that the model gets wrong, or x; arguments as for `iclr18cli.attack.pgd.pgd`."""
        threat.admit(x)
        budget = budget or Budget()
        generator = generator or torch.Generator().manual_seed(0)
        found_BX, index_S = x.detach().clone(), torch.arange(len(x), device=x.device)
        for restart in range(budget.restarts):
            if len(index_S) == 0 or threat.eps == 0:
                break
            x_SX, y_S = x[index_S], y[index_S]
            start_SX = x_SX if restart == 0 else threat.random(x_SX, generator)
            z_SX = self._climb(x_SX, start_SX, y_S, threat, budget)
            with torch.no_grad(), evaluating(model):
                wrong_S = model(z_SX).argmax(1) != y_S
            found_BX[index_S[wrong_S]] = z_SX[wrong_S]
            index_S = index_S[~wrong_S]
        return found_BX

    def _climb(self, x_SX: Tensor, z_SX: Tensor, y_S: Tensor, threat: Threat, budget: Budget) -> Tensor:
        moment_SX = torch.zeros_like(x_SX)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.source):
            for _ in range(budget.steps):
                z_SX = z_SX.detach().clone().requires_grad_()
                value_S = objective(self.source(z_SX), y_S, loss=budget.loss)
                (gradient_SX,) = torch.autograd.grad(value_S.sum(), z_SX, materialize_grads=True)
                size_S = gradient_SX.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient_SX.dtype).tiny)
                moment_SX = DECAY * moment_SX + gradient_SX / size_S.reshape(-1, *[1] * (x_SX.dim() - 1))
                step_SX = budget.step_length(threat.eps) * steepest(moment_SX, threat, z_SX.detach())
                z_SX = threat.bring_back(z_SX.detach() + step_SX, x_SX)
        return z_SX.detach()


def transfer_stage(source: nn.Module, norm: str, options: Mapping[str, Any]) -> Stage:
    """Return the stage of a transfer attack from a model; `options` are fields of `Budget`."""
    spec = AttackSpec(name="transfer", run="", summary="MI-FGSM on another model", norms=(norm,), gradients=False)
    return Stage(spec, dict(options), function=Transfer(source))
