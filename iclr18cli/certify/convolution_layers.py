"""The smallest proven bound of a Conv2d's or ConvTranspose2d's operator norm, by its kind of padding."""

# O output channels · I input channels · a, b kernel rows and columns

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.certify.convolution import (
    both,
    circular_bound,
    convolution_gram,
    fourier_bound,
    multiplicity,
    reshaped_bounds,
)
from iclr18cli.certify.gram import EXACT_SIDE, double, top_root
from iclr18cli.errors import UserError

Layer = nn.Conv2d | nn.ConvTranspose2d
Shape = tuple[int, ...]
Bound = tuple[float, str]
"""An upper bound, rounding included, and the word of `norms.METHODS` for how it was found."""


def convolution(layer: nn.Conv2d, shape: Shape, memory: int) -> tuple[float, str, Shape]:
    """Return (bound, method, output shape) of a convolution with zero or circular padding.

    Raises:
        UserError: Another padding.
    """
    weight = double(layer.weight)
    output = tuple(linear_map(layer, weight)(weight.new_zeros(1, *shape)).shape[1:])
    bound = _on_circle if layer.padding_mode == "circular" else _zero_padded
    return *bound(layer, weight, shape[1:], output[1:], memory), output


def deconvolution(layer: nn.ConvTranspose2d, shape: Shape, memory: int) -> tuple[float, str, Shape]:
    """Return (bound, method, output shape) of a deconvolution, from its adjoint, which has the same norm.

    The adjoint is a convolution from the output to the input: the weight (I, O, a, b) is its weight. What the
    deconvolution's padding cuts off are pixels that this one pads by zeros; output_padding makes its image larger.
    Where that is so large that one more window would fit, the window is left out.
    """
    weight = double(layer.weight)
    output = tuple(linear_map(layer, weight)(weight.new_zeros(1, *shape)).shape[1:])
    return *_zero_padded(layer, weight, output[1:], shape[1:], memory), output


def linear_map(layer: Layer, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what a layer with this weight in place of its own does, without its bias.

    Raises:
        UserError: The padding is neither by zeros nor circular.
    """
    places: Any = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, nn.ConvTranspose2d):
        places |= {"padding": layer.padding, "output_padding": layer.output_padding}
        return lambda x: F.conv_transpose2d(x, weight, None, **places)
    if layer.padding_mode == "zeros":
        return lambda x: F.conv2d(x, weight, None, padding=layer.padding, **places)
    if layer.padding_mode == "circular":
        rows, columns = _pads(layer)
        return lambda x: F.conv2d(F.pad(x, (*columns, *rows), mode="circular"), weight, None, **places)
    raise UserError(
        f"No operator norm is known for a convolution with padding_mode={layer.padding_mode!r}.",
        why="the bounds here are for zero and for circular padding",
        fix="use padding_mode='zeros'",
    )


def _pads(layer: Layer) -> list[tuple[int, int]]:
    """Return how many pixels are padded before and after each axis; "same" puts the odd one last."""
    if not isinstance(layer.padding, str):
        return [(p, p) for p in both(layer.padding)]
    whole = layer.padding == "same"
    spans = [d * (k - 1) * whole for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [(span // 2, span - span // 2) for span in spans]


def _zero_padded(layer: Layer, weight: Tensor, image: Shape, output: Shape, memory: int) -> Bound:
    """Return the smallest bound of a convolution from `image` to `output` that pads by zeros."""
    bounds = _without_matrix(layer, weight, image, output, memory)
    side = min(weight.shape[0] // layer.groups * math.prod(output), weight.shape[1] * math.prod(image))
    if side <= EXACT_SIDE and 4 * 8 * side * side <= memory:
        places: Any = {"stride": layer.stride, "padding": [p for p, _ in _pads(layer)], "dilation": layer.dilation}
        grams = (convolution_gram(k, image, output, **places) for k in weight.chunk(layer.groups))
        terms = math.prod(weight.shape[1:]) + weight.shape[0] * math.prod(output)
        bounds.append((max(top_root(gram, terms=terms) for gram in grams), "exact"))
    return min(bounds)


def _without_matrix(layer: Layer, weight: Tensor, image: Shape, output: Shape, memory: int) -> list[Bound]:
    """Return the bounds of a convolution that pads by zeros, from its kernel alone."""
    places: Any = {"stride": layer.stride, "dilation": layer.dilation}
    windows = multiplicity(weight.shape[2:], **places, output=output)
    bounds = [(bound, "reshaped") for bound in reshaped_bounds(weight, windows, layer.groups)]
    fourier = fourier_bound(weight, image, **places, groups=layer.groups, memory=memory)
    return bounds if fourier is None else [*bounds, (fourier, "fourier")]


def _on_circle(layer: Layer, weight: Tensor, image: Shape, output: Shape, memory: int) -> Bound:
    """Return the smallest bound of a convolution with circular padding: on the circle, or of the padded image.

    Padding repeats no pixel more than ceil(padded / n) times along an axis of n; the rest pads nothing.
    """
    places: Any = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups, "memory": memory}
    circle = circular_bound(weight, image, output, **places)
    if circle is not None and all(n % s == 0 for n, s in zip(image, both(layer.stride), strict=True)):
        return circle, "circular"
    padded = tuple(n + before + after for n, (before, after) in zip(image, _pads(layer), strict=True))
    repeats = math.sqrt(math.prod(-(-p // n) for p, n in zip(padded, image, strict=True))) * (1 + 1e-15)
    bounds = [(repeats * bound, method) for bound, method in _without_matrix(layer, weight, padded, output, memory)]
    return min(bounds if circle is None else [*bounds, (circle, "circular")])
