"""The transport cost c of the experiments, and the proximal map of its infinity-norm variant (Appendix E)."""

# B batch · X the axes of one input · D coordinates of one input

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from iclr18_wrm.derivatives import per_example

Cost = Literal["l2", "linf"]


def transport_cost(z: Tensor, x: Tensor, *, cost: Cost = "l2") -> Tensor:
    """Return c(z, x) per example: the squared 2-norm or the squared infinity-norm of z - x, section 4.

    Args:
        z, x: (B, X) inputs; l2 is a sum over the coordinates, never a mean.
        cost: "l2" or "linf".

    Returns:
        (B,) squared distances in the squared unit of x.

    Raises:
        ValueError: unknown cost.

    Example:
        >>> transport_cost(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).item()
        25.0
    """
    difference_BD = (z - x).flatten(1)
    if cost == "l2":
        return difference_BD.square().sum(1)
    if cost == "linf":
        return difference_BD.abs().amax(1).square()
    raise ValueError(f"cost must be 'l2' or 'linf'; received cost={cost!r}")


def prox_linf_squared(v: Tensor, s: float | Tensor) -> Tensor:
    """Return argmin_u |u - v|_2^2 / 2 + (s/2) |u|_inf^2 per example, Appendix E.

    Signs stay and magnitudes are clipped at the beta that solves h(beta) = sum_i (|v_i| - beta)_+ - s beta = 0. With
    sorted magnitudes that is the largest of the values (sum of the j largest) / (j + s) over j.

    Args:
        v: (B, X).
        s: Number or (B,), not negative. A step a on the penalty gamma |u|_inf^2 has s = 2 a gamma.

    Returns:
        (B, X), v clipped per example.

    Example:
        >>> prox_linf_squared(torch.tensor([[3.0, -1.0, 0.5]]), 1.0).tolist()
        [[1.5, -1.0, 0.5]]
    """
    magnitude_BD = v.flatten(1).abs().sort(dim=1, descending=True).values
    count_D = torch.arange(1, magnitude_BD.shape[1] + 1, dtype=v.dtype, device=v.device)
    s_B1 = torch.as_tensor(s, dtype=v.dtype, device=v.device).reshape(-1, 1)
    # beta_(j+1) is a mean of beta_j and |v|_(j+1), so it rises while |v|_(j+1) > beta_j: the maximum is the root.
    beta_BX = per_example((magnitude_BD.cumsum(1) / (count_D + s_B1)).amax(1), v)
    return v.clamp(-beta_BX, beta_BX)
