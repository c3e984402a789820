"""`sngan certify`: a proven Lipschitz bound of the critic, and how far the reshaped norms are from it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iclr18_sngan.config import CertifyConfig
from iclr18_sngan.figures import gan
from iclr18_sngan.mechanism import Bound, gradient_norms, lipschitz_bound
from iclr18_sngan.model import Critic
from iclr18cli.certify.result import Certificate
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.opened import OpenedRun

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
    steepest = largest_gradient(net.critic, split, net.classes, steps=config.steps)
    seconds = time.perf_counter() - start
    draw_gap(bound, run)
    return [lipschitz(config, bound, steepest, split, seconds), gap(bound, steepest, split, seconds)]


def lipschitz(config: CertifyConfig, bound: Bound, steepest: float, split: Split, seconds: float) -> Certificate:
    """State the bound; the largest gradient found is what no bound may fall below."""
    value = bound.value * config.eps
    return Certificate(
        kind="lipschitz",
        verdict="proven",
        subject="critic",
        statement=(
            f"When any image is moved by at most {config.eps:g} in the 2-norm, D moves by at most {value:.4g} "
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
        constants={
            "L": bound.value, "L_features": bound.chain.constant, "head": bound.head,
            **{f"norm {name}": operator for name, operator, _, _ in bound.layers},
        },
        empirical={"attack": f"gradient norm, ascent from {len(split)} images", "value": steepest * config.eps},
        holds=steepest <= bound.value * (1 + SLACK),
        seconds=seconds,
    )  # fmt: skip


def gap(bound: Bound, steepest: float, split: Split, seconds: float) -> Certificate:
    """Say by what factor the product of reshaped norms falls short of that of operator norms."""
    others = bound.value / bound.operator
    claimed = bound.reshaped * others
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
            f"The reshaped norms that the paper normalises multiply to {bound.reshaped:.4g}, the bounds of the "
            f"convolutions' own norms to {bound.operator:.4g}; taken for a Lipschitz constant the former would claim "
            f"{claimed:.4g}; {said}."
        ),
        not_claimed=[
            "That the product of reshaped norms bounds anything: a convolution's norm may be the larger.",
            "That each bound is attained: those of layers too large for an exact value are from above.",
        ],
        value=bound.operator / bound.reshaped if bound.reshaped else math.inf,
        quantity="operator norms / reshaped norms",
        bound="equal",
        sample={"dataset": split.name, "split": split.split, "n": len(split), "sha256": split.digest()},
        constants={
            "reshaped_product": bound.reshaped, "operator_product": bound.operator, "would_claim": claimed,
            "largest_gradient": steepest,
            **{f"ratio {name}": operator / reshaped for name, operator, reshaped, _ in bound.layers if reshaped},
        },
        warnings=["the product of reshaped norms is refuted as a Lipschitz bound"] if refuted else [],
        seconds=seconds,
    )  # fmt: skip


def largest_gradient(critic: Critic, split: Split, classes: int, *, steps: int, step: float = 0.1) -> float:
    """Return the largest |grad_x D| found by normalised ascent on it from every point of a split, over all of R^d."""
    x, y = split.inputs().clone(), split.y if classes else None
    best = gradient_norms(critic, x, y).max()
    for _ in range(steps):
        x = _steeper(critic, x, y, step)
        best = torch.maximum(best, gradient_norms(critic, x, y).max())
    return best.item()


def _steeper(critic: Critic, x: Tensor, y: Tensor | None, step: float) -> Tensor:
    # Leaky ReLUs have no curvature, so the gradient itself is the direction in which the active set may change.
    with evaluating(critic), torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(critic(x, y).sum(), x)
    length = grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return (x + step * grad / length).detach()


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
