"""Norms of affine layers induced by the infinity-norm: the largest sum of a row's absolute weights, exactly.

For a claim in the infinity-norm they replace the 2-norm times the root of the dimension, which is looser by orders of
magnitude on images.
"""

# C channels · H height · W width

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iclr18cli.certify.convolution_layers import linear_map
from iclr18cli.certify.norms import Norm, admit, double, operator_norm

EPS = torch.finfo(torch.float64).eps


def infinity_norm(layer: nn.Module, input_shape: Sequence[int], *, memory: int = 2**31) -> Norm:
    """Return max |A x|_inf over |x|_inf <= 1 of an affine layer's linear part, in float64 and rounded up.

    It is the largest row sum of |A|, which the layer itself computes: with absolute weights, on an input of ones. The
    zeros that pad an image make the sums near its edge smaller; the worst position is the largest entry.

    Args:
        layer: The kinds `operator_norm` knows, in evaluation mode.
        input_shape: Shape of one input, without the batch.
        memory: Bytes the layer's matrices may take; nothing here comes near it.

    Raises:
        UserError: The layer has no known norm, or a weight is not finite.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0], [5.0, 0.0]]))
        >>> round(infinity_norm(layer, (2,)).value, 9)
        7.0
    """
    admit(layer)
    shape = tuple(input_shape)
    match layer:
        case nn.Linear():
            return Norm(_up(double(layer.weight).abs().sum(1).max(), layer.in_features), "row sums",
                        (*shape[:-1], layer.out_features))  # fmt: skip
        case nn.Conv2d() | nn.ConvTranspose2d():
            weight = double(layer.weight).abs()
            sums = linear_map(layer, weight)(weight.new_ones(1, *shape))
            return Norm(_up(sums.max(), weight[0].numel() * len(weight)), "row sums", tuple(sums.shape[1:]))
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            sums = layer(torch.ones(1, *shape, dtype=torch.float64))  # weights >= 0: it is |A| already
            return Norm(_up(sums.abs().max(), math.prod(shape[1:])), "row sums", tuple(sums.shape[1:]))
    # A diagonal, or a map that only moves and drops entries: the largest factor in both norms.
    return operator_norm(layer, shape, memory=memory)


def _up(value: Tensor, terms: int) -> float:
    """Return a computed sum of `terms` non-negative numbers, raised by what its rounding may have lost."""
    return float(value) * (1 + 2 * EPS * (terms + 1))
