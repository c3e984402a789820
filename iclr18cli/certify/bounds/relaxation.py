"""Two lines around an activation on an interval: lower slope and offset, upper slope and offset, per neuron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclr18cli.errors import UserError

NARROW = 1e-9
"""Below this width the ends are too near for a chord; flat lines through the ends' values are used."""


@dataclass(frozen=True)
class Lines:
    """lower_slope x + lower_offset <= a(x) <= upper_slope x + upper_offset on [l, u]."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


def lines(layer: nn.Module, l: Tensor, u: Tensor) -> Lines:  # noqa: E741
    """Return lines around an activation on [l, u].

    Convex ones (ReLU, LeakyReLU, ELU with alpha <= 1, softplus): the chord above, a tangent below. S-shaped ones (tanh,
    sigmoid): chord and tangent where the interval lies on one side of 0; across 0 two parallels through the ends with
    the smaller of the ends' slopes, which the derivative never falls below in between.

    Raises:
        UserError: ELU with alpha > 1, which is neither.
    """
    a_l, a_u = layer(l), layer(u)
    wide = (u - l) > NARROW
    chord = torch.where(wide, (a_u - a_l) / (u - l).clamp(min=NARROW), 0.0)
    if isinstance(layer, nn.Tanh | nn.Sigmoid):
        return _s_shaped(layer, l, u, a_l, a_u, chord, wide)
    if isinstance(layer, nn.ELU) and layer.alpha > 1:
        raise UserError(
            f"No linear bounds are known for ELU with alpha = {layer.alpha:g}: it is not convex.",
            fix="--method ibp, or alpha <= 1",
        )
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        low = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
        if low > 1:
            raise UserError(f"No linear bounds are known for a LeakyReLU of slope {low:g}.", fix="--method ibp")
        slope = torch.where(u > -l, 1.0, low)
        slope = torch.where(l >= 0, 1.0, torch.where(u <= 0, low, slope))
        offset = torch.zeros_like(l)
    else:
        middle = (l + u) / 2
        slope, value = _slope(layer, middle), layer(middle)
        offset = value - slope * middle
    return _finished(slope, offset, chord, a_u - chord * u, a_l, a_u, wide)


def _slope(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the derivative of an activation, of every element."""
    match layer:
        case nn.Tanh():
            return 1 - x.tanh().square()
        case nn.Sigmoid():
            return x.sigmoid() * (-x).sigmoid()
        case nn.ELU():
            return torch.where(x > 0, 1.0, layer.alpha * x.clamp(max=0).exp())
        case nn.Softplus():
            return (layer.beta * x).sigmoid()
    raise TypeError(f"no derivative is written down for {type(layer).__name__}")


def _s_shaped(
    layer: nn.Module,
    l: Tensor,  # noqa: E741
    u: Tensor,
    a_l: Tensor,
    a_u: Tensor,
    chord: Tensor,
    wide: Tensor,
) -> Lines:
    middle = (l + u) / 2
    tangent = _slope(layer, middle)
    tangent_offset = layer(middle) - tangent * middle
    least = torch.minimum(_slope(layer, l), _slope(layer, u))
    concave, convex = l >= 0, u <= 0
    lower_slope = torch.where(concave, chord, torch.where(convex, tangent, least))
    lower_offset = torch.where(concave, a_l - chord * l, torch.where(convex, tangent_offset, a_l - least * l))
    upper_slope = torch.where(concave, tangent, torch.where(convex, chord, least))
    upper_offset = torch.where(concave, tangent_offset, torch.where(convex, a_u - chord * u, a_u - least * u))
    return _finished(lower_slope, lower_offset, upper_slope, upper_offset, a_l, a_u, wide)


def _finished(
    lower_slope: Tensor, lower_offset: Tensor, upper_slope: Tensor, upper_offset: Tensor, a_l: Tensor, a_u: Tensor,
    wide: Tensor,
) -> Lines:  # fmt: skip
    """Take flat lines where the interval is a point up to rounding: every activation here rises."""
    zero = torch.zeros_like(a_l)
    return Lines(
        torch.where(wide, lower_slope, zero), torch.where(wide, lower_offset, a_l),
        torch.where(wide, upper_slope, zero), torch.where(wide, upper_offset, a_u),
    )  # fmt: skip
