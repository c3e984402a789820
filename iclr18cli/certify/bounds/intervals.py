"""Interval bound propagation: an axis-parallel box around everything a layer can put out (Gowal et al. 2018).

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.attack.threat import Threat
from iclr18cli.certify.bounds.network import Step
from iclr18cli.models.layers import Normalize


@dataclass(frozen=True)
class Interval:
    """lower <= value <= upper, both (B, X).

    `ball` is there while everything so far scaled or moved coordinates only: the set is also contained in
    {centre + scale * d : |d|_2 <= eps}, which the first dense or convolutional layer makes better use of than of a box.
    """

    lower: Tensor
    upper: Tensor
    ball: tuple[Tensor, Tensor, str] | None = None

    @property
    def centre(self) -> Tensor:
        """Return the middle."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Return half of the width, >= 0."""
        return (self.upper - self.lower) / 2


def of_threat(x: Tensor, threat: Threat) -> Interval:
    """Return the box around the threat set of each input, and its ball where the norm is not linf."""
    lower, upper = threat.clip(x - threat.eps), threat.clip(x + threat.eps)
    ball = None if threat.norm == "linf" else (x, torch.full_like(x, threat.eps), threat.norm)
    return Interval(lower, upper, ball)


Boxes = dict[str, Interval]
"""Path of a step -> the box of what enters it."""


def propagate(steps: list[Step], at: Interval, record: Boxes | None = None) -> Interval:
    """Push a box through a chain.

    Args:
        steps: From `chain`.
        at: Box of the inputs.
        record: Gets the box before every step, under its path.
    """
    for step in steps:
        if record is not None:
            record[step.path] = at
        if step.kind == "sum":
            assert step.branches is not None
            one, other = (propagate(branch, at, record) for branch in step.branches)
            at = Interval(one.lower + other.lower, one.upper + other.upper)
        elif step.kind == "affine":
            at = affine(step.layer, at)
        else:
            at = Interval(step.layer(at.lower), step.layer(at.upper))
    return at


def affine(layer: nn.Module, at: Interval) -> Interval:
    """Push a box through an affine layer: its centre goes along, its radius through the absolute weights."""
    centre, radius = layer(at.centre), spread(layer, at.radius)
    lower, upper = centre - radius, centre + radius
    if at.ball is None:
        return Interval(lower, upper)
    middle, scale, norm = at.ball
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        # A pool mixes coordinates: from there on the box alone is known.
        mixes = isinstance(layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d)
        return Interval(lower, upper, None if mixes else (layer(middle), spread(layer, scale), norm))
    # |sum_j w_j s_j d_j| <= |w s|_2 for |d|_2 <= 1, and max_j |w_j s_j| for |d|_1 <= 1.
    middle, reach = layer(middle), ball_spread(layer, scale, norm)
    return Interval(torch.maximum(lower, middle - reach), torch.minimum(upper, middle + reach))


def spread(layer: nn.Module, radius: Tensor) -> Tensor:
    """Return how far the outputs move at most when each input moves by at most `radius`."""
    match layer:
        case nn.Linear():
            return F.linear(radius, layer.weight.abs())
        case nn.Conv2d():
            return _convolve(layer, radius, layer.weight.abs())
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            assert layer.running_var is not None
            scale = (layer.running_var + layer.eps).rsqrt()
            scale = scale if layer.weight is None else scale * layer.weight.abs()
            return radius * scale.reshape(1, -1, *[1] * (radius.dim() - 2))
        case Normalize():
            return radius / layer.std.reshape(-1, *[1] * (radius.dim() - 2))
    return layer(radius)  # pools, flattening and shortcuts: weights >= 0 and no bias


def ball_spread(layer: nn.Linear | nn.Conv2d, scale: Tensor, norm: str) -> Tensor:
    """Return the same for inputs that move by scale * d with |d| <= 1 in l2 or l1."""
    if norm == "l2":
        squared = layer.weight.square()
        moved = (
            F.linear(scale.square(), squared)
            if isinstance(layer, nn.Linear)
            else _convolve(layer, scale.square(), squared)
        )
        return moved.clamp(min=torch.finfo(moved.dtype).tiny).sqrt()
    if isinstance(layer, nn.Linear):
        return (scale[..., None, :] * layer.weight.abs()).amax(-1)
    largest = layer.weight.abs().flatten(1).amax(1).reshape(1, -1, 1, 1)  # from above: one number per channel
    return (
        largest * scale.flatten(1).amax(1).reshape(-1, 1, 1, 1) * torch.ones_like(_convolve(layer, scale, layer.weight))
    )


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def margins(steps: list[Step], at: Interval, y: Tensor) -> Tensor:
    """Return lower bounds of z_y - z_j, (B, K), 0 at j = y; a dense last layer takes the differences of its rows.

    Args:
        steps: Of the whole network.
        at: Box of the inputs.
        y: (B,) classes.
    """
    last = steps[-1]
    if not isinstance(last.layer, nn.Linear):
        out = propagate(steps, at)
        found = out.lower.gather(1, y[:, None]) - out.upper
        return found.scatter(1, y[:, None], 0.0)
    before = propagate(steps[:-1], at)
    weight_KD = last.layer.weight
    difference_BKD = weight_KD[y][:, None] - weight_KD
    found = torch.einsum("bkd,bd->bk", difference_BKD, before.centre)
    reach = torch.einsum("bkd,bd->bk", difference_BKD.abs(), before.radius)
    if before.ball is not None:
        middle, scale, norm = before.ball
        own = difference_BKD * scale[:, None]
        tight = own.norm(dim=2) if norm == "l2" else own.abs().amax(2)
        found = torch.maximum(found - reach, torch.einsum("bkd,bd->bk", difference_BKD, middle) - tight)
    else:
        found = found - reach
    if last.layer.bias is not None:
        found = found + last.layer.bias[y][:, None] - last.layer.bias
    return found
