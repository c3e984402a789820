"""Training through a quantiser: the forward pass sees quantised values, the gradient passes as if it had not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(x: Tensor, quantised: Tensor) -> Tensor:
    """Return `quantised`, bit for bit, with dL/dx = dL/dquantised (Bengio et al. 2013; section 4 of Xu et al. 2018).

    Example:
        >>> w = torch.tensor([0.3], requires_grad=True)
        >>> (5 * straight_through(w, torch.tensor([1.0]))).sum().backward(); w.grad
        tensor([5.])
    """
    return _StraightThrough.apply(x, quantised.detach())


@torch.no_grad()
def clip_(module: nn.Module, limit: float = 1.0) -> None:
    """Clip every matrix to [-limit, limit] after an update, section 4. Biases are not quantised and not clipped."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.clamp_(-limit, limit)
