"""`sngan certify`: a proven Lipschitz bound of the critic, and how far the reshaped norms are from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from iclr18_sngan.config import CertifyConfig
from iclr18_sngan.figures import gan
from iclr18_sngan.mechanism import Bound, lipschitz_bound
from iclr18_sngan.model import Critic
from iclr18cli.certify.result import Certificate
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.opened import OpenedRun

STEP = 0.1
"""Length of a step of the climb, unit of the input."""

SLACK = 1e-4
"""Relative rounding of a float32 gradient that a bound in exact arithmetic is not held to."""


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Return the two statements about a run's critic.

    Raises:
        UserError: A layer has no known constant, layer normalisation for example.
    """
    start = time.perf_counter()
    net = gan(run)
    split = run.split(config.split, config.points).to(run.device)
    bound = lipschitz_bound(net.critic, split.shape)
    found = steepest_point(net.critic, split, net.classes, eps=config.eps, steps=config.steps)
    batch_norm = any(isinstance(part, _BatchNorm) for part in net.critic.modules())
    seconds = time.perf_counter() - start
    draw_gap(bound, run)
    return [lipschitz(config, bound, *found, split, seconds, batch_norm), gap(bound, found[0], split, seconds)]


def lipschitz(
    config: CertifyConfig,
    bound: Bound,
    steepest: float,
    moved: float,
    split: Split,
    seconds: float,
    batch_norm: bool,
) -> Certificate:
    """State the bound; the largest gradient and move found are what it may not fall below."""
    value = bound.value * config.eps
    return Certificate(
        kind="lipschitz",
        verdict="proven",
        subject="critic",
        statement=(
            f"{'In evaluation mode, when' if batch_norm else 'When'} any image is moved by at most {config.eps:g} in "
            f"the 2-norm, D moves by at most {value:.4g} "
            f"(Lipschitz constant at most {bound.value:.4g}; the steepest gradient found is {steepest:.4g})."
        ),
        not_claimed=[
            "Anything about the samples, or that training is stable.",
            "Tightness: between the gradient found and the bound nothing is known.",
            "Rounding of a float32 forward pass: the bound is of the network in exact arithmetic.",
        ],
        value=value,
        quantity="move of D",
        threat={"norm": "l2", "radius": config.eps, "average|pointwise": "pointwise", "domain": "R^d"},
        sample={"dataset": split.name, "split": "any input", "n": 0},
        assumptions=["Batch norm by its running statistics: in training D(x) depends on the batch."] * batch_norm,
        constants={
            "L": bound.value, "largest_gradient": steepest, "L_features": bound.chain.constant, "head": bound.head,
            **{f"norm {name}": operator for name, operator, _, _ in bound.layers},
        },
        empirical={"attack": f"steps of that length along gradients, from {len(split)} images", "value": moved},
        holds=steepest <= bound.value * (1 + SLACK) and moved <= value * (1 + SLACK),
        seconds=seconds,
    )  # fmt: skip


def gap(bound: Bound, steepest: float, split: Split, seconds: float) -> Certificate:
    """Say by what factor the product of reshaped norms falls short of that of operator norms."""
    claimed = bound.claimed
    refuted = steepest > claimed * (1 + SLACK)
    said = (
        f"a gradient of {steepest:.4g} was found, so that number is no Lipschitz bound"
        if refuted
        else f"the largest gradient found, {steepest:.4g}, does not exceed it"
    )
    return Certificate(
        kind="technique",
        verdict="measured",
        subject="critic",
        statement=(
            f"The reshaped norms of the layers multiply, with the head's, to {bound.reshaped:.4g}, the bounds of their "
            f"own norms to {bound.operator:.4g}; taken for Lipschitz constants the former would claim {claimed:.4g} "
            f"for D; {said}."
        ),
        not_claimed=[
            "That the product of reshaped norms bounds anything: a convolution's norm may be the larger.",
            "That each bound is attained: those of layers too large for an exact value are from above.",
        ],
        value=bound.operator / bound.reshaped if bound.reshaped else 1.0,
        quantity="bounds of operator norms / reshaped norms",
        bound="upper",
        sample={"dataset": split.name, "split": split.split, "n": len(split), "sha256": split.digest()},
        constants={
            "reshaped_product": bound.reshaped, "operator_product": bound.operator, "would_claim": claimed,
            "largest_gradient": steepest,
            **{f"ratio {name}": operator / reshaped for name, operator, reshaped, _ in bound.layers if reshaped},
        },
        warnings=["the product of reshaped norms is refuted as a Lipschitz bound"] if refuted else [],
        seconds=seconds,
    )  # fmt: skip


def steepest_point(critic: Critic, split: Split, classes: int, *, eps: float, steps: int) -> tuple[float, float]:
    """Climb D from every point and return (largest |grad D| seen, largest move of D by a step of length eps).

    Over all of R^d; the step goes along the gradient, up and down.
    """
    x, y = split.inputs().clone(), split.y if classes else None
    steepest = moved = x.new_zeros(())
    with evaluating(critic):
        for number in range(steps + 1):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                value_B = critic(x, y)
                (grad,) = torch.autograd.grad(value_B.sum(), x)
            norm_B = grad.flatten(1).norm(dim=1)
            unit = grad / norm_B.clamp(min=1e-12).view(-1, 1, 1, 1)
            steepest = torch.maximum(steepest, norm_B.max())
            with torch.no_grad():
                for sign in (1, -1):
                    moved = torch.maximum(moved, (critic(x + sign * eps * unit, y) - value_B).abs().max())
                if number < steps:
                    x = x + STEP * unit
    return steepest.item(), moved.item()


def draw_gap(bound: Bound, run: OpenedRun) -> None:
    """Draw both norms of every layer side by side into the run's plots."""
    from iclr18cli.report.plot import COLOURS, new_figure

    figure, axes = new_figure()
    places = range(len(bound.layers))
    for shift, place, label in ((-0.2, 2, "reshaped"), (0.2, 1, "operator (bound)")):
        heights = [layer[place] for layer in bound.layers]
        axes.bar([at + shift for at in places], heights, 0.4, label=label, color=COLOURS[place])
    axes.set_xticks(list(places), [layer[0].removeprefix("features.") for layer in bound.layers], rotation=60)
    axes.set_ylabel("norm")
    axes.legend(frameon=False, fontsize=7)
    run.figure("norms", figure)
