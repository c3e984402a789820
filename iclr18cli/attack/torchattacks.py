"""Attacks of the package torchattacks 3.5.1, with its traps closed. The only module that imports it.

What the package does and what is done about it here: it clamps to [0, 1] in silence (inputs are checked before, and a
model with another range is shown to it over [0, 1]); PGDL2 takes four axes only (others are shown as (B, d, 1, 1)); the
whole model is put back in training mode afterwards (it sees a wrapper; every flag is restored); it draws from the
global generators (saved and restored); it prints when a model has no parameters (the wrapper has one); it returns the
last iterate of one start (restarts here keep every example once it is broken); it fails under no_grad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating


class UnitBox(nn.Module):
    """Show a model with inputs of any shape in [lo, hi] as one with inputs (B, C, H, W) in [0, 1]."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], domain: tuple[float, float], device: torch.device):
        super().__init__()
        self.model, self.shape, self.low, self.width = model, shape, domain[0], domain[1] - domain[0]
        # torchattacks asks the first parameter for the device and prints if there is none.
        self.device_mark = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, u: Tensor) -> Tensor:
        """Return the logits of the inputs that `u` stands for."""
        return self.model(self.inputs(u))

    def inputs(self, u: Tensor) -> Tensor:
        """Map from the unit box to the model's inputs."""
        x = u.reshape(len(u), *self.shape)
        return x if (self.low, self.width) == (0.0, 1.0) else self.low + self.width * x

    def unit(self, x: Tensor) -> Tensor:
        """Map the model's inputs into the unit box, with four axes."""
        u = x if (self.low, self.width) == (0.0, 1.0) else (x - self.low) / self.width
        return (u if u.dim() == 4 else u.reshape(len(u), -1, 1, 1)).clamp(0, 1)


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take one signed gradient step of length eps (Goodfellow et al. 2015), linf; the budget is not used.

    Args, Returns: As for `iclr18cli.attack.pgd.pgd`.

    Raises:
        UserError: The inputs have no declared range, or lie outside it.
    """

    def make(package: Any, box: UnitBox, eps: float) -> Any:
        return package.FGSM(box, eps=eps)

    return _attack(make, model, x, y, threat, starts=1, generator=generator)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Run PGD (linf) or PGDL2 (l2) of torchattacks from random starts, on the mean cross-entropy.

    Args, Returns: As for `iclr18cli.attack.pgd.pgd`; `budget.loss` must be "cross-entropy".

    Raises:
        UserError: The inputs have no declared range, or lie outside it, or another loss is asked for.
    """
    budget = budget or Budget()
    if budget.loss != "cross-entropy":
        raise UserError(f"torchattacks has no PGD on the loss '{budget.loss}'.", fix="--attack pgd")

    def make(package: Any, box: UnitBox, eps: float) -> Any:
        kind = package.PGD if threat.norm == "linf" else package.PGDL2
        step_length = budget.step_length(threat.eps) / box.width
        return kind(box, eps=eps, alpha=step_length, steps=budget.steps, random_start=True)

    return _attack(make, model, x, y, threat, starts=budget.restarts, generator=generator)


def _attack(
    make: Callable[[Any, UnitBox, float], Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    starts: int,
    generator: torch.Generator | None,
) -> Tensor:
    if threat.domain is None:
        raise UserError(
            "torchattacks cannot attack inputs without a declared range.",
            why="it clamps every input to [0, 1]",
            fix="--attack pgd     (any shape, any range)",
        )
    threat.admit(x)
    if threat.eps == 0:
        return x.detach().clone()
    import torchattacks as package

    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), _own_randomness(x.device, seed):
        x_BX, y_B = x.detach().clone(), y.detach().clone()
        box = UnitBox(model, tuple(x.shape[1:]), threat.domain, x.device).eval()
        attack = make(package, box, threat.eps / box.width)
        found_BX, index_S = x_BX.clone(), torch.arange(len(x_BX), device=x.device)
        for _ in range(starts):
            if len(index_S) == 0:
                break
            x_SX, y_S = x_BX[index_S], y_B[index_S]
            u_SX = attack(box.unit(x_SX), y_S)
            z_SX = threat.bring_back(box.inputs(u_SX).detach(), x_SX)  # the way back and forth rounds
            found_BX[index_S] = z_SX
            with torch.no_grad():
                index_S = index_S[model(z_SX).argmax(1) == y_S]
    return found_BX


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that torchattacks draws from, and put them back afterwards."""
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: it also seeds the devices that fork_rng does not save.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
