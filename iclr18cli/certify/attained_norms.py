"""Operator norms from below: what a layer does to some input, measured. For comparison with the proven bounds."""

# X the axes of one input · Y the axes of one output

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def attained_norm(layer: nn.Module, input_shape: Sequence[int], *, steps: int = 100, seed: int = 0) -> float:
    """Return |A v| for a unit input v found by power iteration on A^T A, with A the layer's linear part.

    At most the operator norm, up to the rounding of float64, and never falling with the steps. What is missing shrinks
    by (sigma_2 / sigma_1)^4 per step, so it may stay below for long; never a bound from above. sngan card, section 5.

    Args:
        layer: An affine module, taken in evaluation mode, of any kind that has a gradient; it is copied.
        input_shape: Shape of one input, without the batch.
        steps: Applications of A^T A, at least 1.
        seed: Of the first direction, standard normal.

    Raises:
        ValueError: `steps` is below 1.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        >>> round(attained_norm(layer, (2,)), 6)
        5.0
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1; received steps={steps!r}")
    device = next((tensor.device for tensor in layer.state_dict().values()), torch.device("cpu"))
    if device.type == "mps":  # has no float64
        device = torch.device("cpu")
    apply = copy.deepcopy(layer).to(device).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    v_X = torch.randn(1, *input_shape, generator=generator, dtype=torch.float64).to(device)
    offset_Y = apply(torch.zeros_like(v_X))
    best = v_X.new_zeros(())
    with torch.enable_grad():
        for _ in range(steps + 1):
            size = v_X.norm().clamp(min=torch.finfo(torch.float64).tiny)
            v_X = (v_X / size).requires_grad_()
            image_Y = apply(v_X) - offset_Y
            best = torch.maximum(best, image_Y.detach().norm())
            (gradient_X,) = torch.autograd.grad(image_Y.square().sum() / 2, v_X)  # A^T A v
            v_X = gradient_X.detach()
    return float(best)
