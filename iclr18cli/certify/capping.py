"""Keep the true operator norm of every layer under a cap during training, so that certificates have small constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from iclr18cli.certify.convolution import multiplicity
from iclr18cli.certify.gram import gram_bound
from iclr18cli.certify.norms import double, operator_norm
from iclr18cli.models.modes import evaluating

Method = Literal["fast", "exact"]
Capped = list[tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]]

STEPS = 8
"""Steps of the Gram iteration: at most 1 % above the norm for a Gram side of 128 (the factor is n^(1/2^9))."""


def capped_layers(model: nn.Module, input_shape: Sequence[int]) -> Capped:
    """Return the layers that a cap applies to, each with the shape of its input, without the batch.

    Every Linear and Conv2d that a forward pass of one zero input meets, in the order of that pass.

    Args:
        model: Any module; held in evaluation mode meanwhile.
        input_shape: Shape of one input, without the batch.
    """
    layers: Capped = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layers.append((layer, tuple(arguments[0].shape[1:])))

    handles = [layer.register_forward_pre_hook(note) for layer in model.modules()]
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, *input_shape, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return layers


@torch.no_grad()
def cap_(layer: nn.Linear | nn.Conv2d, input_shape: Sequence[int], cap: float, *, method: Method = "fast") -> nn.Module:
    """Scale a layer's weight in place so that its proven operator norm is at most `cap`; below the cap change nothing.

    "fast" bounds a dense layer by Gram iteration, a convolution by Gram iteration on its reshaped kernel times the
    root of the overlap of its windows, which is at least the true norm and up to a few times it. It neither computes
    eigenvalues nor waits for the device: made for every optimiser step. "exact" uses `operator_norm` and so leaves a
    convolution as large as the cap allows; seconds for a large one. After either, `operator_norm` is at most `cap`.

    Args:
        layer: Linear, or Conv2d with zero or circular padding (circular: both methods compute the exact norm).
        input_shape: Shape of one input of the layer, without the batch.
        cap: Largest operator norm, above 0.
        method: See above.

    Returns:
        The layer.

    Raises:
        TypeError: The layer is neither, or its weight is parametrized.
        ValueError: The cap is not above 0, or the method is unknown.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> _ = cap_(layer, (3,), 0.1)
        >>> operator_norm(layer, (3,)).value <= 0.1
        True
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise TypeError(f"layer must be Linear or Conv2d; received {type(layer).__name__}")
    if nn.utils.parametrize.is_parametrized(layer, "weight"):
        raise TypeError(
            f"the weight of {type(layer).__name__} is computed by a parametrization; cap what it is made from"
        )
    if not cap > 0:
        raise ValueError(f"cap must be > 0; received cap={cap!r}")
    # Rounding the scaled weight to its type moves it by at most eps |W|_F <= eps sqrt(side) |W|_2.
    margin = 1 - 2 * torch.finfo(layer.weight.dtype).eps * min(layer.weight.flatten(1).shape) ** 0.5 - 1e-7
    if method == "fast":
        bound = fast_bound(layer, input_shape)
        scale = torch.where(bound > cap, cap / bound * margin, 1.0)
        layer.weight.mul_(scale.to(layer.weight))
    elif method == "exact":
        while (value := operator_norm(layer, input_shape).value) > cap:
            layer.weight.mul_(cap / value * margin)
    else:
        raise ValueError(f"method must be 'fast' or 'exact'; received method={method!r}")
    return layer


def cap_layers_(layers: Capped, cap: float, *, method: Method = "fast") -> None:
    """Apply `cap_` to every layer that `capped_layers` found; call it after each optimiser step.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ELU(), nn.Linear(4, 2))
        >>> layers = capped_layers(net, (2,))
        >>> cap_layers_(layers, 1.7)
    """
    for layer, shape in layers:
        cap_(layer, shape, cap, method=method)


def fast_bound(layer: nn.Linear | nn.Conv2d, input_shape: Sequence[int]) -> Tensor:
    """Return an upper bound of the layer's norm as a 0-dim float64 tensor on its device, without waiting for it.

    It is never below what `operator_norm` reports for the layer, up to a relative 1e-7.
    """
    weight = double(layer.weight)
    if isinstance(layer, nn.Linear):
        return gram_bound(weight, steps=STEPS)
    if layer.padding_mode != "zeros":
        return torch.full((), operator_norm(layer, input_shape).value, dtype=torch.float64)
    output = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 if not isinstance(layer.padding, str) else n
        for n, p, d, k, s in zip(
            input_shape[1:],
            layer.padding if not isinstance(layer.padding, str) else (0, 0),
            layer.dilation,
            layer.kernel_size,
            layer.stride,
            strict=True,
        )
    ]
    m_h, m_w = multiplicity(layer.kernel_size, layer.stride, layer.dilation, output)
    rows, columns = layer.kernel_size
    k = weight.unflatten(0, (layer.groups, -1))
    windowed = (m_h * m_w) ** 0.5 * gram_bound(k.flatten(2), steps=STEPS)
    sent = (rows * columns) ** 0.5 * gram_bound(k.transpose(1, 2).flatten(2), steps=STEPS)
    return torch.minimum(windowed, sent)
