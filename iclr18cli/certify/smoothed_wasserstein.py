"""A Wasserstein certificate by smoothing, for any model (Kumar, Levine, Goldstein, Feizi 2022): ReLU, black boxes.

For h in [0, 1] the smoothed h_s(x) = E h(x + sigma xi) changes by at most the total variation of two Gaussians,
erf(d / (2 sqrt2 sigma)) at distance d. That is concave in d, so for every distribution P whose points lie at a mean
distance of at most e from those of P_n, E_P h_s <= E_Pn h_s + erf(e / (2 sqrt2 sigma)); e = sqrt(rho) by Jensen.

N points · P moved points · M noise draws · X the axes of one input · K classes
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from iclr18cli import launch
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.threat import unit
from iclr18cli.certify.distributional import distributional_attacks, within_budget
from iclr18cli.certify.randomized import (
    BLOCK_NUMBERS,
    check_smoothing,
    model_dtype,
    noise_generator,
)
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.shared_points import agreed
from iclr18cli.certify.smoothed import check_points
from iclr18cli.certify.smoothed_shift import WORDS, Facts, Mean, Measure, certificate, mean_bounds
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import device_of, evaluating

LEVEL = 1e-6
"""Probability that chance alone makes one attack look like a contradiction."""

MOVED, EOT_DRAWS = 100, 8
"""Points that the attack moves, and noise draws it averages a gradient over."""


@torch.no_grad()
def noisy_values(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index_M: Tensor,
    *,
    sigma: float,
    measure: Measure,
    generator: torch.Generator,
    batch_size: int,
    progress: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """Return h(x_i + noise) for every i of an index, one draw each: (M,) float64 in [0, 1] on the CPU.

    Args:
        model: In evaluation mode; maps (B, *X) to (B, K) logits.
        x, y: (N, *X) and (N,), on one device.
        index_M: Positions among the N.
        sigma: Standard deviation of the noise.
        measure: "error", 1 where the class is wrong; or "error-probability", 1 - p_y.
        generator: Source of the noise.
        batch_size: Inputs per forward pass; changes nothing but rounding.
        progress: Told how many values are there.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, kind = max(1, BLOCK_NUMBERS // max(1, x[0].numel())), model_dtype(model, x.dtype)
    ranks, found, own = launch.world(), list[Tensor](), list[Tensor]()
    for number, part_B in enumerate(index_M.split(rows)):  # of a fixed size: draws do not depend on the batch size
        noise_BX = torch.randn(len(part_B), *x.shape[1:], generator=generator, device=generator.device, dtype=dtype)
        if number % ranks.size != ranks.rank:
            continue  # every rank draws all of the noise, and evaluates its part
        z_BX = noise_BX.to(x.device).mul_(sigma).add_(x[part_B.to(x.device)])
        found = []
        for z, label in zip(z_BX.split(batch_size), y[part_B.to(y.device)].split(batch_size), strict=True):
            logits = model(z.to(kind))
            if measure == "error":
                found.append((logits.argmax(1) != label).double().cpu())
            else:
                found.append(_wrong_probability(logits.double(), label).cpu().clamp(0, 1))
            progress(len(label))
        own.append(torch.cat(found))
    blocks: list[Tensor] = [torch.empty(0)] * -(-len(index_M) // rows)
    for rank, of_rank in enumerate(ranks.gather(own)):
        blocks[rank :: ranks.size] = of_rank
    return torch.cat(blocks)


def _wrong_probability(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(1).scatter(1, y[:, None], 0.0).sum(1)


def wasserstein_smoothing(
    model: nn.Module,
    split: Split,
    *,
    sigma: float,
    rhos: Sequence[float] = (0.0001, 0.001, 0.01),
    measure: Measure = "error",
    draws: int = 20_000,
    delta: float = 0.001,
    population: bool = False,
    batch_size: int = 0,
    seed: int = 0,
    attack: bool = True,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Certificate]:
    """Bound the smoothed error over every distribution within each Wasserstein budget; certification card, section 1.

    The mean over the sample is estimated from independent (point, noise) pairs, the point uniform among the N; for a
    population statement from one noise draw per point. One interval serves all budgets.

    Args:
        model: Maps (N, *shape) to (N, K) logits; any deterministic function. Held in evaluation mode.
        split: The points.
        sigma: Standard deviation of the noise, in the unit of the input.
        rhos: Budgets, mean squared 2-norm displacement, at least 0.
        measure: "error" or "error-probability" (1 - p_y) of the model on a noisy input.
        draws: Pairs drawn; not used by a population statement.
        delta: Probability that the statement fails, in (0, 1/2).
        population: State it for the distribution the points were drawn from.
        batch_size: Noisy inputs per forward pass; 0: from the free memory.
        seed: Seed of the draws.
        attack: Move points within each budget and compare.
        progress: Told how many noisy inputs were evaluated.

    Returns:
        One certificate per budget, in order.

    Raises:
        UserError: A population statement from training points, or points or labels that do not fit.
        ValueError: A number is out of range.
    """
    began = time.perf_counter()
    check_smoothing(sigma=sigma, n=draws, alpha=delta)
    if not rhos or any(not 0 <= rho < math.inf for rho in rhos):
        raise ValueError(f"rhos must be finite numbers >= 0; received rhos={rhos!r}")
    if measure not in WORDS:
        raise ValueError(f"measure must be one of {', '.join(WORDS)}; received measure={measure!r}")
    if population and split.split == "train":
        raise UserError(
            "A population statement cannot be made from training points.",
            why="the model depends on them, so they are not a fresh sample for it",
            fix="use the test split (`--split test`), or leave --population out",
        )
    placed = split.to(device_of(model, split.x.device))
    x, y, n = placed.inputs(), placed.y, len(split)
    with evaluating(model):
        base, classes = check_points(model, split, x)
        size = agreed(batch_size or batch_size_for(model, x[:2].to(model_dtype(model, x.dtype))))

        def pairs(*names: object) -> Tensor:
            if population:
                return torch.arange(n)
            choose = noise_generator(torch.device("cpu"), seed, "wasserstein-smoothing", "points", *names)
            return torch.randint(n, (draws,), generator=choose)

        def estimate(points: Tensor, level: float, *names: object) -> Mean:
            generator = noise_generator(x.device, seed, "wasserstein-smoothing", *names)
            values_M = noisy_values(
                model,
                points,
                y,
                pairs(*names),
                sigma=sigma,
                measure=measure,
                generator=generator,
                batch_size=size,
                progress=progress,
            )
            return mean_bounds(values_M, measure, level)

        clean = estimate(x, delta, "clean")
        attacks: list[tuple[float, Mean] | None] = [None] * len(rhos)
        if attack:
            moved = move_points(model, x, y, rhos, sigma=sigma, seed=seed, batch_size=size)
            attacks = [
                (distance, estimate(points, LEVEL, "attacked", rho))
                for rho, (points, distance) in zip(rhos, moved, strict=True)
            ]
    facts = Facts(
        split=split,
        sigma=sigma,
        measure=measure,
        clean=clean,
        base=base,
        classes=classes,
        draws=n if population else draws,
        delta=delta,
        population=population,
        batch_size=size,
        seed=seed,
        seconds=time.perf_counter() - began,
    )
    return [certificate(facts, rho, found) for rho, found in zip(rhos, attacks, strict=True)]


def move_points(
    model: nn.Module, x: Tensor, y: Tensor, rhos: Sequence[float], *, sigma: float, seed: int, batch_size: int
) -> list[tuple[Tensor, float]]:
    """Move the first points within each budget so that the smoothed 1 - p_y rises; the others stay.

    The ascent and the sharing of the budget are those of `distributional_attacks`, on a mean over a few fixed noise
    draws. A model without input gradients is moved in random directions.

    Returns:
        (points, mean squared distance) per budget; the distance is at most rho.
    """
    moved, n = min(len(x), MOVED), len(x)
    generator = noise_generator(x.device, seed, "wasserstein-smoothing", "attack")
    noise_MX = torch.randn(EOT_DRAWS, *x.shape[1:], generator=generator, device=generator.device, dtype=x.dtype)
    noise_MX, kind = noise_MX.to(x.device) * sigma, model_dtype(model, x.dtype)

    def loss(z_BX: Tensor, y_B: Tensor) -> Tensor:
        noisy = (z_BX[:, None] + noise_MX).flatten(0, 1)
        wrong = _wrong_probability(model(noisy.to(kind)), y_B.repeat_interleave(EOT_DRAWS))
        return wrong.unflatten(0, (len(z_BX), EOT_DRAWS)).mean(1).to(z_BX.dtype)

    budgets = [rho * n / moved for rho in rhos]
    first, label = x[:moved], y[:moved]
    with torch.inference_mode(False), torch.enable_grad():
        probe = first[:1].clone().requires_grad_()
        if loss(probe, label[:1]).requires_grad:
            found = [
                a.points
                for a in distributional_attacks(
                    loss,
                    first,
                    label,
                    budgets,
                    steps=15,
                    refinements=3,
                    factors=(2.0, 1.0, 0.5),
                    shrink=(0.5,),
                    batch_size=max(1, batch_size // EOT_DRAWS),
                )
            ]
        else:
            direction = unit(torch.randn(first.shape, generator=generator, device=generator.device).to(x))
            found = [within_budget(first, first + direction, budget) for budget in budgets]
    results = []
    for points in found:
        points = torch.cat([points.detach(), x[moved:]])
        results.append((points, float((points.double() - x.double()).flatten(1).square().sum(1).mean())))
    return results
