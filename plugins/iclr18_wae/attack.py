"""`wae attack`: perturbations that raise the reconstruction error, move the code, or pull it to another image's.

B batch · X the axes of one input · D latent dimensions
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_wae.config import AttackConfig
from iclr18_wae.evaluate import auto_encoder
from iclr18_wae.model import AutoEncoder
from iclr18cli.attack.pgd import steepest
from iclr18cli.attack.threat import Threat, per_example
from iclr18cli.device import derived_seed
from iclr18cli.models.modes import evaluating
from iclr18cli.report.plot import new_figure

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

BATCH = 100
Damage = Callable[[Tensor], Tensor]
"""Perturbed inputs (B, *X) to what the adversary raises, (B,)."""


def attack(config: AttackConfig, run: OpenedRun) -> dict[str, Any]:
    """Attack the first points of a split at every radius: a lower bound of the worst damage, never a proof."""
    net = auto_encoder(run)
    split = run.split(config.split, config.limit).to(run.device)
    generator = torch.Generator(run.device).manual_seed(derived_seed(run.seed, "wae attack"))
    curve: list[dict[str, float]] = []
    with evaluating(net):
        x_BX = split.inputs()
        noise = torch.randn(
            (config.noise_draws, len(x_BX), net.prior.D), generator=generator, device=run.device
        ) if net.random else torch.empty(0)  # fmt: skip
        goal = damage(net, x_BX, config.goal, noise)
        with torch.no_grad():
            before = goal(x_BX)
        found = x_BX
        for eps in run.progress(sorted(set(config.eps)), "attack"):
            threat = Threat(config.norm, eps, run.card.range)
            # Every smaller ball lies in this one: its best points are a start.
            found = ascend(
                goal, x_BX, threat, start=found, steps=config.steps, restarts=config.restarts, generator=generator
            )
            with torch.no_grad():
                after, moved = goal(found), threat.check(found, x_BX)
                shift = (net(found) - net(x_BX)).flatten(1).norm(dim=1)
                code_shift = (net.encode(found) - net.encode(x_BX)).norm(dim=1)
            curve.append({
                "eps": eps, "damage": after.mean().item(), "damage_max": after.max().item(),
                "reconstruction_shift": shift.mean().item(), "reconstruction_shift_max": shift.max().item(),
                "code_shift": code_shift.mean().item(), "mean_distance": moved.mean().item(),
            })  # fmt: skip
    figure = str(run.figure(f"attack-{config.goal}-{config.norm}", _curve(config, before.mean().item(), curve)))
    said = {
        "reconstruction": "|G(Q(z)) - x|^2, mean over points",
        "code": "|Q(z) - Q(x)|, mean over points",
        "target": "minus |Q(z) - Q(x')|, x' the next image, mean over points",
    }
    return {
        "verdict": "attack", "goal": config.goal, "damage_is": said[config.goal], "norm": config.norm, "n": len(x_BX),
        "steps": config.steps, "restarts": config.restarts, "undisturbed": before.mean().item(), "curve": curve,
        "figure": figure,
    }  # fmt: skip


def damage(net: AutoEncoder, x_BX: Tensor, goal: str, noise_KBD: Tensor) -> Damage:
    """Return what the adversary raises; with a random encoder the mean over fixed draws of its noise."""

    def codes(z_BX: Tensor) -> list[Tensor]:
        mean, log_variance = net.posterior(z_BX)
        if not net.random:
            return [net.prior.place(mean)]
        return [net.perturbed(mean, log_variance, noise) for noise in noise_KBD]

    with torch.no_grad():
        own = net.encode(x_BX)
        other = own.roll(-1, dims=0)

    def reconstruction(z_BX: Tensor) -> Tensor:
        errors = [(net.decode(code) - x_BX).flatten(1).square().sum(1) for code in codes(z_BX)]
        return torch.stack(errors).mean(0)

    def code(z_BX: Tensor) -> Tensor:
        # The root has no gradient at 0, where the ascent starts.
        return torch.stack([((c - own).square().sum(1) + 1e-12).sqrt() for c in codes(z_BX)]).mean(0)

    def target(z_BX: Tensor) -> Tensor:
        return -torch.stack([((c - other).square().sum(1) + 1e-12).sqrt() for c in codes(z_BX)]).mean(0)

    return {"reconstruction": reconstruction, "code": code, "target": target}[goal]


def ascend(
    goal: Damage, x_BX: Tensor, threat: Threat, *, start: Tensor, steps: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """Return the points of greatest damage that projected gradient ascent meets, never worse than `start` or x.

    Args:
        goal: What is raised.
        x_BX: Centres of the balls.
        threat: The balls.
        start: (B, *X) points of the balls to begin from.
        steps, restarts: Steps from each start; the first is `start`, the others are random.
        generator: Draws the random starts.
    """
    if threat.eps == 0:
        return x_BX
    with torch.no_grad():
        best, value = x_BX.clone(), goal(x_BX)
    for number in range(restarts):
        z = threat.random(x_BX, generator) if number else start
        for t in range(steps + 1):
            z = z.detach().requires_grad_()
            reached = goal(z)
            better = (reached > value).detach()
            value = torch.where(better, reached.detach(), value)
            best = torch.where(per_example(better, x_BX), z.detach(), best)
            if t == steps:
                break
            (gradient,) = torch.autograd.grad(reached.sum(), z)
            rate = 2.5 * threat.eps / steps * (1 - t / steps) + 0.1 * threat.eps / steps
            z = threat.bring_back(z.detach() + rate * steepest(gradient, threat, z.detach()), x_BX)
    return best


def _curve(config: AttackConfig, before: float, curve: list[dict[str, float]]) -> Any:
    figure, axes = new_figure()
    axes.plot([0.0, *(p["eps"] for p in curve)], [before, *(p["damage"] for p in curve)], marker="o", linewidth=1.2)
    axes.set_xlabel(f"eps ({config.norm})")
    axes.set_ylabel(f"damage ({config.goal})")
    return figure
