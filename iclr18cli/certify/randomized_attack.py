"""Attack a smoothed classifier inside its certified balls: what a wrong radius would be exposed by.

B batch · M noise draws · X the axes of one input · K classes
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from iclr18cli.attack.threat import per_example, unit
from iclr18cli.certify.randomized import Point, class_counts, model_dtype, noise_generator
from iclr18cli.certify.shared_points import in_parts

INSIDE = 1 - 1e-3
"""Part of a radius that the attack goes to: strictly inside, beyond the rounding of the inputs."""

LEVEL = 1e-6
"""Probability that chance alone makes the test of one run call a contradiction, over all of its points."""


def smoothed_loss(model: nn.Module, z_BX: Tensor, y_B: Tensor, noise: Tensor) -> Tensor:
    """Return -log of the mean probability of y over noise draws, (B,): expectation over transformation.

    Args:
        model: In evaluation mode.
        z_BX: Inputs, with gradient if wanted.
        y_B: Classes.
        noise: (B, M, *X), or (M, *X) for the same draws at every input.
    """
    noisy = z_BX[:, None] + noise
    logits = model(noisy.flatten(0, 1).to(model_dtype(model, z_BX.dtype)))
    log_p = logits.log_softmax(1).unflatten(0, noisy.shape[:2])
    chosen_BM = log_p.gather(2, y_B[:, None, None].expand(-1, noisy.shape[1], 1)).squeeze(2)
    return math.log(noisy.shape[1]) - torch.logsumexp(chosen_BM, 1)


def smoothed_pgd(
    model: nn.Module,
    x_BX: Tensor,
    y_B: Tensor,
    radius_B: Tensor,
    *,
    sigma: float,
    generator: torch.Generator,
    steps: int = 10,
    draws: int = 16,
) -> Tensor:
    """Ascend the smoothed loss inside a 2-norm ball per input, with fresh draws at every step (Salman et al. 2019).

    A model without an input gradient is attacked by one random direction of full length.

    Args:
        model: In evaluation mode, parameters frozen: see `evaluating`.
        x_BX: Inputs.
        y_B: Classes to leave.
        radius_B: Radius per input.
        sigma: Standard deviation of the noise.
        generator: Source of all randomness.
        steps, draws: Ascent steps, and noise draws per step and input.

    Returns:
        (B, *X) within the radii.
    """
    radius = per_example(radius_B.to(x_BX), x_BX)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device, dtype=x_BX.dtype).to(x_BX.device)

    z_BX = x_BX.clone()
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            z_BX = z_BX.detach().clone().requires_grad_()
            noise = draw(len(x_BX), draws, *x_BX.shape[1:]) * sigma
            value_B = smoothed_loss(model, z_BX, y_B, noise)
            if not value_B.requires_grad:
                return (x_BX + radius * unit(draw(*x_BX.shape))).detach()
            (gradient_BX,) = torch.autograd.grad(value_B.sum(), z_BX, materialize_grads=True)
            moved_BX = z_BX.detach() + 2.5 / steps * radius * unit(gradient_BX.nan_to_num(0.0, 0.0, 0.0)) - x_BX
            length = per_example(moved_BX.flatten(1).double().square().sum(1).sqrt().to(x_BX), x_BX)
            z_BX = x_BX + moved_BX * (radius / length.clamp(min=1e-30)).clamp(max=1)
    return z_BX.detach()


def differs(
    model: nn.Module,
    z_X: Tensor,
    claimed: int,
    *,
    sigma: float,
    n: int,
    level: float,
    batch_size: int,
    names: tuple[object, ...],
) -> bool:
    """Return whether the smoothed class at z is another than claimed, shown at the given level.

    A rival is selected with n // 10 draws, at least 100; n fresh ones test it: among the draws that gave either class,
    the rival's share must exceed one half by a one-sided binomial test.
    """
    from scipy.stats import binomtest

    counts_K = []
    for purpose, draws in (("rival", max(100, n // 10)), ("test", n)):
        generator = noise_generator(z_X.device, *names, purpose)
        counts_K.append(class_counts(model, z_X, draws, sigma=sigma, generator=generator, batch_size=batch_size))
    others_K = counts_K[0].clone()
    others_K[claimed] = -1
    rival = int(others_K.argmax())
    won, lost = int(counts_K[1][rival]), int(counts_K[1][claimed])
    return won > lost and binomtest(won, won + lost, 0.5, alternative="greater").pvalue <= level


def contradicted(
    model: nn.Module,
    x: Tensor,
    points: list[tuple[Point, float]],
    *,
    sigma: float,
    n: int,
    batch_size: int,
    seed: int,
    steps: int = 10,
    draws: int = 16,
) -> list[int]:
    """Attack every point just inside its radius and return the indices of those whose class was shown to change.

    Args:
        model: In evaluation mode, parameters frozen.
        x: (N, *X) the evaluated inputs.
        points: (point, radius) pairs; the class predicted there is attacked within that radius.
        sigma: Standard deviation of the noise.
        n: Draws of the test at an attacked input.
        batch_size: Noisy inputs per evaluation.
        seed: Seed of the run.
        steps, draws: See `smoothed_pgd`.
    """
    size = max(1, batch_size // draws)

    def changed(part: list[tuple[Point, float]]) -> list[int]:
        found = []
        index_B = torch.tensor([point.index for point, _ in part], device=x.device)
        claimed_B = torch.tensor([point.predicted for point, _ in part], device=x.device)
        radius_B = torch.tensor([radius * INSIDE for _, radius in part], dtype=torch.float64, device="cpu")
        generator = noise_generator(x.device, seed, "smoothing", "attack", part[0][0].index)
        z_BX = smoothed_pgd(
            model, x[index_B], claimed_B, radius_B, sigma=sigma, generator=generator, steps=steps, draws=draws
        )
        for z_X, (point, _) in zip(z_BX, part, strict=True):
            names = (seed, "smoothing", "attacked", point.index)
            if differs(
                model,
                z_X,
                point.predicted,
                sigma=sigma,
                n=n,
                level=LEVEL / len(points),
                batch_size=batch_size,
                names=names,
            ):
                found.append(point.index)
        return found

    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [index for found in in_parts(parts, changed) for index in found]
