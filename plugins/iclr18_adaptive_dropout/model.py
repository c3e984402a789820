"""Networks with a retain rate in front of every layer with weights, as chains of modules."""

# B batch · C channels · H height · W width · K classes

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from iclr18_adaptive_dropout.dropout import AdaptiveDropout
from iclr18cli.models.vision import image_shape, positive


class RowShare(nn.Module):
    """Divide every input by its sum: counts of words become shares, (B, d) to (B, d). A row of zeros stays one.

    No parameters; the first layer of text networks, so that the saved model takes raw counts in any unit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x / sum x."""
        return x / x.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def mlp(
    *, input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, hidden: Sequence[int] = (256,),
    init: Sequence[float] = (0.8, 0.5), per: str = "unit", rows: bool = False,
    bias: bool = True,
) -> nn.Sequential:  # fmt: skip
    """Build dense layers with ReLU, rates in front of each: (B, *input_shape) to logits (B, K).

    Args:
        input_shape: Shape of one input.
        classes: K.
        hidden: Widths of the hidden layers; empty: a linear classifier.
        init: Starting rates of inputs and of hidden units, in [0, 1]; the last goes on.
        per: "unit" or "layer", see `iclr18_adaptive_dropout.dropout.AdaptiveDropout`.
        rows: Start with `RowShare`.
        bias: Dense layers add a bias; the paper's formulas have none.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    positive(classes=classes, **{f"input_shape[{i}]": n for i, n in enumerate(input_shape)})
    layers: list[nn.Module] = [RowShare()] if rows else []
    if len(input_shape) != 1:
        layers.append(nn.Flatten())
    return glorot(nn.Sequential(*layers, *_dense((prod(input_shape), *hidden), classes, rates(init), per, bias)))


def conv(
    *, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, filters: Sequence[int] = (96, 128, 256),
    hidden: Sequence[int] = (2048, 2048), init: Sequence[float] = (0.9, 0.75, 0.5), per: str = "unit",
) -> nn.Sequential:  # fmt: skip
    """Build 5x5 convolutions with ReLU and 3x3 max-pooling of stride 2, then dense layers; section 5 of the paper.

    Rates are per unit: channel, row and column.

    Args:
        input_shape: (C, H, W).
        classes: K.
        filters: Of the convolutions.
        hidden: Widths of the dense hidden layers.
        init: Starting rates of inputs, of what convolutions put out, and of dense hidden units; the last goes on.
        per: "unit" or "layer".

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(input_shape, at_least=2)
    positive(classes=classes, **{f"filters[{i}]": n for i, n in enumerate(filters)})
    starts = rates(init)
    layers: list[nn.Module] = []
    for number, width in enumerate(filters):
        layers += [AdaptiveDropout((C, H, W), starts[min(number, 1)], per), nn.Conv2d(C, width, 5, padding=2)]
        layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        C, H, W = width, -(-H // 2), -(-W // 2)
    dense = _dense((C * H * W, *hidden), classes, starts[1:] if filters else starts, per, True)
    return glorot(nn.Sequential(*layers, nn.Flatten(), *dense))


def rates(init: Sequence[float]) -> tuple[float, float, float]:
    """Return three starting rates, the last one repeated.

    Raises:
        ValueError: There is none, or more than three.
    """
    if not 1 <= len(init) <= 3:
        raise ValueError(f"init must hold 1 to 3 rates; received init={tuple(init)!r}")
    given = [*init, *[init[-1]] * 2]
    return given[0], given[1], given[2]


def _dense(widths: Sequence[int], classes: int, starts: Sequence[float], per: str, bias: bool) -> list[nn.Module]:
    positive(**{f"width[{i}]": n for i, n in enumerate(widths)})
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise((*widths, classes))):
        layers += [AdaptiveDropout(fan_in, starts[min(number, 1)], per), nn.Linear(fan_in, fan_out, bias), nn.ReLU()]
    return layers[:-1]


def glorot(net: nn.Sequential) -> nn.Sequential:
    """Draw weights of a network from Glorot's uniform distribution of gain 1, in place; biases are 0."""
    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return net
