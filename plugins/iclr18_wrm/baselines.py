"""The heuristics WRM is compared with, section 4: FGM, IFGM and PGM inside a ball around each example."""

# B batch · X the axes of one input

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from iclr18_wrm.derivatives import Loss, input_gradient, per_example

Norm = Literal["l2", "linf"]
Box = tuple[float, float] | None


def steepest(grad: Tensor, *, eps: float, norm: Norm) -> Tensor:
    """Return argmax over |eta|_p <= eps of <grad, eta> per example; a vanishing gradient gives no move."""
    if norm == "l2":
        length_B = grad.flatten(1).norm(dim=1)
        return grad * per_example(torch.where(length_B > 0, eps / length_B, 0.0), grad)
    if norm == "linf":
        return eps * grad.sign()
    raise ValueError(f"norm must be 'l2' or 'linf'; received norm={norm!r}")


def onto_ball(z: Tensor, x: Tensor, *, eps: float, norm: Norm) -> Tensor:
    """Return the point of the ball |z - x|_p <= eps that is nearest to z in 2-norm, per example."""
    difference = z - x
    if norm == "l2":
        length_B = difference.flatten(1).norm(dim=1)
        # Points inside stay bit for bit where they are.
        return torch.where(
            per_example(length_B > eps, z), x + difference * per_example(eps / length_B.clamp(min=eps), z), z
        )
    if norm == "linf":
        return x + difference.clamp(-eps, eps)
    raise ValueError(f"norm must be 'l2' or 'linf'; received norm={norm!r}")


def norm_ball_ascent(
    loss: Loss,
    x: Tensor,
    *,
    eps: float,
    norm: Norm = "l2",
    steps: int = 15,
    step_size: float | None = None,
    project: bool = True,
    box: Box = None,
) -> Tensor:
    """Raise the loss inside the ball of radius eps around x by steepest ascent from x, PGM of section 4.

    x <- Proj[x + alpha argmax_{|eta|_p <= eps} <grad, eta>], T times.

    Args:
        loss: x -> (B,).
        x: (B, X) natural points.
        eps: Radius in the unit of x.
        norm: "l2" or "linf".
        steps: T; one gradient each.
        step_size: alpha, a multiple of eps. Default 2.5/T with the projection (Madry et al., 2018), 1/T without.
        project: Project on the ball after each step. Without it and with alpha <= 1/T the triangle inequality
            keeps the point inside.
        box: (low, high) of the domain to clip to; None, as in the paper: no clipping.

    Returns:
        (B, X), detached: the last iterate.

    Raises:
        ValueError: eps < 0, steps < 1 or an unknown norm.
    """
    if not eps >= 0 or steps < 1:
        raise ValueError(f"eps must be >= 0 and steps >= 1; received eps={eps!r}, steps={steps!r}")
    # Deviation: the paper's alpha_t is not in the text we read; both defaults are ours.
    alpha = step_size if step_size is not None else (2.5 if project else 1.0) / steps
    x = z = x.detach()
    for _ in range(steps):
        _, grad_BX = input_gradient(loss, z)
        z = z + alpha * steepest(grad_BX, eps=eps, norm=norm)
        if project:
            z = onto_ball(z, x, eps=eps, norm=norm)
        if box is not None:
            z = z.clamp(*box)
    return z


def fgm(loss: Loss, x: Tensor, *, eps: float, norm: Norm = "l2", box: Box = None) -> Tensor:
    """Move each example once, by the full radius (fast gradient method): one gradient."""
    return norm_ball_ascent(loss, x, eps=eps, norm=norm, steps=1, step_size=1.0, project=False, box=box)


def ifgm(loss: Loss, x: Tensor, *, eps: float, norm: Norm = "l2", steps: int = 15, box: Box = None) -> Tensor:
    """Move each example T times by eps/T and never project (iterated fast gradient method)."""
    # Deviation: the text we read does not say how IFGM's steps differ from PGM's. Ours: T steps of length eps/T, which
    # stay in the ball by themselves, so that it is FGM with the gradient refreshed and needs no projection.
    return norm_ball_ascent(loss, x, eps=eps, norm=norm, steps=steps, project=False, box=box)


def pgm(
    loss: Loss,
    x: Tensor,
    *,
    eps: float,
    norm: Norm = "l2",
    steps: int = 15,
    step_size: float | None = None,
    box: Box = None,
) -> Tensor:
    """Move each example T times by alpha eps and project on the ball each time (projected gradient method)."""
    return norm_ball_ascent(loss, x, eps=eps, norm=norm, steps=steps, step_size=step_size, box=box)
