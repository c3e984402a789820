"""The bound of the Rademacher complexity of a dropout network, and the regulariser made of it.

    Bound, camera-ready:  k 2^L sqrt(2 log(2d) / n) |X|_max  prod_l max_j |W_j^l|_p |theta^(l-1)|_1^(1/q)
    Bound, submission:    k     sqrt(2 log(2d) / n) |X|_max  prod_l max_j |W_j^l|_p |theta^(l-1)|_q

For your own network, any chain of `nn.Linear`, `nn.Conv2d` and `AdaptiveDropout`:

    layers = layers_of(net)
    loss = criterion(net(x), y) + 1e-4 * rademacher_reg(layers, x.abs().amax(), len(x), p=inf)
"""

# B batch · k^l units of layer l, k^0 = d inputs, k^L = k classes · L layers

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from iclr18_adaptive_dropout.dropout import AdaptiveDropout

Form = Literal["camera", "submission"]
Scale = Literal["fan-in", "paper", "none"]
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Layer:
    """One factor of the bound: the rates of a layer's inputs and its weights.

    Args:
        drop: Where the rates come from; None: all inputs always pass.
        weight: (k^l, k^(l-1)), a row holds the incoming weights of a unit; None for a convolution, which is left out.
        fan_in, fan_out: k^(l-1) and k^l.
        bias: (k^l,), or None.
    """

    drop: AdaptiveDropout | None
    weight: Tensor | None
    fan_in: int
    fan_out: int
    bias: Tensor | None = None


def layers_of(net: nn.Module) -> list[Layer]:
    """Return the factors of a chain of dense and convolutional layers, in the order of its modules.

    An `AdaptiveDropout` belongs to the next layer with weights. A convolution has a factor only if it has rates.

    Raises:
        ValueError: There is no dense layer, another kind of layer with parameters, a weight that two layers share, or
            rates that do not belong to the layer after them.
    """
    found: list[Layer] = []
    weights: list[Tensor] = []
    drop: AdaptiveDropout | None = None
    for part in net.modules():
        if isinstance(part, AdaptiveDropout):
            if drop is not None:
                raise ValueError(f"{drop} and {part} have no layer with weights between them")
            drop = part
        elif isinstance(part, nn.Linear):
            if drop is not None and prod(drop.shape) != part.in_features:
                raise ValueError(f"rates of shape {drop.shape} cannot belong to {part}")
            weights.append(part.weight)
            found.append(Layer(drop, part.weight, part.in_features, part.out_features, part.bias))
            drop = None
        elif isinstance(part, nn.Conv2d):
            weights.append(part.weight)
            if drop is not None:
                if len(drop.shape) != 3 or drop.shape[0] != part.in_channels:
                    raise ValueError(f"rates of shape {drop.shape} cannot belong to {part}")
                found.append(Layer(drop, None, prod(drop.shape), part.out_channels))
            drop = None
        elif next(part.parameters(recurse=False), None) is not None:
            raise ValueError(f"a chain is of dense layers, convolutions and rates; received {type(part).__name__}")
    if drop is not None or not any(layer.weight is not None for layer in found):
        raise ValueError(f"a chain must end in a dense layer; received {type(net).__name__}")
    if len({id(weight) for weight in weights}) < len(weights):
        raise ValueError("a chain has every weight once; received one that two layers share")
    return found


def conjugate(p: float) -> float:
    """Return q with 1/p + 1/q = 1.

    Raises:
        ValueError: p is below 1.

    Example:
        >>> conjugate(2.0), conjugate(math.inf), conjugate(1.0)
        (2.0, 1.0, inf)
    """
    if not p >= 1:
        raise ValueError(f"p must be >= 1; received p={p!r}")
    return 1.0 if math.isinf(p) else math.inf if p == 1 else p / (p - 1)


def weight_norm(weight: Tensor, p: float) -> Tensor:
    """Return max_j |W_j|_p over the rows of a matrix as torch stores it: a row holds the incoming weights of a unit."""
    # The largest is looked for without a graph: a gradient of the whole matrix would cost more than the step.
    if math.isinf(p):
        row = weight.detach().abs().amax(1).argmax(0, keepdim=True)  # in two stages: a third of the time
        flat = weight.index_select(0, row).flatten()
        return flat.gather(0, flat.detach().abs().argmax(0, keepdim=True)).abs().squeeze()
    largest = torch.linalg.vector_norm(weight.detach(), p, dim=1).argmax(0, keepdim=True)
    return torch.linalg.vector_norm(weight.index_select(0, largest), p)


def rate_norm(theta: Tensor, p: float, form: Form = "camera") -> Tensor:
    """Return |theta|_1^(1/q) [camera] or |theta|_q [submission]; |theta|_q <= E|r|_q <= |theta|_1^(1/q).

    With p = 1 the camera form is 1 whatever theta is (for theta = 0 as well, as its limit): 1/q = 0.
    """
    q = conjugate(p)
    if form == "submission":
        return torch.linalg.vector_norm(theta, q)
    total = theta.sum()
    if q == 1:
        return total
    # The root's gradient at 0 is infinite: there it is cut off.
    return torch.where(total > 0, total.clamp_min(TINY) ** (1 / q), total if p > 1 else torch.ones_like(total))


def scaling(layer: Layer, p: float, scale: Scale) -> float:
    """Return what a factor is multiplied by, so that it does not grow with the width under Glorot's initialisation.

    sqrt(k^(l-1) + k^l) / k, for p = 2 divided by sqrt(log k^l) as well; k is the fan-in (authors' code) or the fan-out
    (paper). Over all layers they differ by the constant d/k. A convolution has no weights here: its rates' norm is
    divided by that of rates 1.
    """
    if scale == "none":
        return 1.0
    if layer.weight is None:
        q = conjugate(p)
        return 1.0 if math.isinf(q) else layer.fan_in ** (-1 / q)
    spread = float(layer.fan_in + layer.fan_out)
    if p == 2:
        spread /= math.log(max(layer.fan_out, 2))  # log 1 = 0 for a single output
    return math.sqrt(spread) / (layer.fan_in if scale == "fan-in" else layer.fan_out)


def factors(layers: Sequence[Layer], *, p: float, form: Form = "camera", scale: Scale = "none") -> Tensor:
    """Return c_l, (L,): with gradients to weights and rates that ask for them.

    Args:
        layers: Of `layers_of`.
        p: Norm of the weights, >= 1.
        form: "camera" (with a factor 2 per layer) or "submission".
        scale: See `scaling`.
    """
    found = []
    for layer in layers:
        factor: Tensor | float = (2.0 if form == "camera" else 1.0) * scaling(layer, p, scale)
        if layer.weight is not None:
            factor = factor * weight_norm(layer.weight.float(), p)
        if layer.drop is not None:
            factor = factor * rate_norm(layer.drop.rates, p, form)
        else:  # all rates are 1
            q = conjugate(p)
            factor = factor * (1.0 if math.isinf(q) else layer.fan_in ** (1 / q))
        found.append(torch.as_tensor(factor))
    return torch.stack(found)


def rademacher_reg(
    layers: Sequence[Layer], x_max: Tensor | float, n: int, *, p: float, form: Form = "camera", scale: Scale = "fan-in"
) -> Tensor:
    """Return the regulariser k sqrt(log d / n) |X|_max prod_l c_l, a scalar.

    Computed as the exponential of a sum of logarithms: the product of many wide layers leaves float32 on its way.

    Args:
        layers: Of `layers_of`.
        x_max: |X|_max, largest absolute input; a tensor stays on its device.
        n: Number of examples it is of.
        p, form, scale: See `factors`.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1; received n={n!r}")
    d, k = layers[0].fan_in, layers[-1].fan_out
    c_L = factors(layers, p=p, form=form, scale=scale)
    x = torch.as_tensor(x_max, dtype=c_L.dtype, device=c_L.device)
    constant = math.log(k) + 0.5 * (math.log(max(math.log(d), TINY)) - math.log(n))
    # A factor of 0 makes it 0; clamped, because the logarithm's gradient there would be NaN.
    logs = c_L.clamp_min(TINY).log().sum() + x.clamp_min(TINY).log() + constant
    return logs.exp() * ((c_L > 0).all() & (x > 0))


@dataclass(frozen=True)
class Bound:
    """The bound of the empirical Rademacher complexity and what it is the product of.

    Args:
        value: k sqrt(2 log(2 d) / n) x_max times the factors; infinite where that leaves float64.
        factors: c_l of every layer, with all constants.
        d: Inputs, one more where there are biases.
        x_max: |X|_max, at least 1 where there are biases.
    """

    value: float
    factors: tuple[float, ...]
    d: int
    x_max: float


def rademacher_bound(layers: Sequence[Layer], x_max: float, n: int, *, p: float, form: Form = "camera") -> Bound:
    """Return the bound of the empirical Rademacher complexity, with all constants and without scaling, in float64.

    The theorem has no biases. If there are any, they count as weights of one more input that is 1 and always passes:
    |X|_max and each max_j |(W_j, b_j)|_p are then at least 1, so that a unit can hand the constant on; d grows by 1.

    Args:
        layers: Of `layers_of`, all of them dense.
        x_max: Largest absolute input.
        n: Number of examples.
        p, form: See `factors`.

    Raises:
        ValueError: A layer is a convolution.
    """
    biased = any(layer.bias is not None for layer in layers)
    d, k = layers[0].fan_in + biased, layers[-1].fan_out
    x, found = (max(x_max, 1.0) if biased else x_max), []
    for layer in layers:
        if layer.weight is None:
            raise ValueError("the bound is for dense layers; received a convolution")
        weight = layer.weight.detach().double()
        theta = weight.new_ones(layer.fan_in) if layer.drop is None else layer.drop.rates.detach().double().flatten()
        if biased:
            bias = weight.new_zeros(layer.fan_out) if layer.bias is None else layer.bias.detach().double()
            weight, theta = torch.cat([weight, bias[:, None]], 1), torch.cat([theta, theta.new_ones(1)])
        B, norm = weight_norm(weight, p).item(), rate_norm(theta, p, form).item()
        found.append((2.0 if form == "camera" else 1.0) * (max(B, 1.0) if biased else B) * norm)
    value = k * math.sqrt(2 * math.log(2 * d) / n) * x * prod(found)
    return Bound(value, tuple(found), d, x)
