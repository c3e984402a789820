"""Rung S4: phi_gamma in two dimensions to any tolerance, by branch and bound with S2's bound per cell. A reference."""

from __future__ import annotations

import torch
from torch import Tensor

from iclr18cli.certify.dual import Loss, value_and_gradient


def phi(
    loss: Loss, x: Tensor, y: Tensor, *, gamma: float, K: float, L: float, tolerance: float = 1e-4
) -> tuple[float, float]:
    """Return (lower, upper) with lower <= sup_z loss(z) - gamma |z - x|^2 <= upper, for one point x of shape (2,).

    A maximiser lies within K / gamma of x, because loss(z) - loss(x) <= K |z - x|. On a square with centre c and half
    width h the objective is at most its value at c plus the sum over the coordinates of max_{|s| <= h} r s - (gamma -
    L/2) s^2, whatever the sign of gamma - L/2. Squares whose bound is below the best value seen are dropped, the others
    quartered.
    """
    x = x.double()
    half = K / gamma
    centres = x[None].clone()
    best = float(loss(x[None], y[None]))
    bend = gamma - L / 2
    quarter = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    for _ in range(60):
        value, gradient = value_and_gradient(loss, centres, y.expand(len(centres)))
        at = value - gamma * (centres - x).square().sum(1)
        best = max(best, float(at.max()))
        r = (gradient - 2 * gamma * (centres - x)).abs()
        s = (r / (2 * bend)).clamp(max=half) if bend > 0 else torch.full_like(r, half)
        upper = at + (r * s - bend * s.square()).sum(1)
        keep = upper > best + tolerance / 2
        if not keep.any():
            return best, best + tolerance / 2
        if keep.sum() > 200_000:
            break
        half /= 2
        centres = (centres[keep][:, None] + half * quarter).reshape(-1, 2)
    return best, float(upper.max())
