"""Operator norms of linear layers, proven from above.

Every bound is a valid upper bound of the 2-norm of the layer's linear part in exact arithmetic; what rounding can do is
added outwards. Power iteration approaches a norm from below and is used nowhere here; see `attained_norms`.
"""

# O output channels · I input channels · a, b kernel rows and columns · n side of a Gram matrix

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.certify.convolution import circular_norm
from iclr18cli.certify.convolution_layers import convolution, deconvolution
from iclr18cli.certify.gram import EXACT_SIDE, double, gram_iteration, matrix_norm
from iclr18cli.certify.slopes import plain
from iclr18cli.errors import UserError
from iclr18cli.models.layers import Normalize, PadShortcut

__all__ = [
    "EXACT_SIDE",
    "METHODS",
    "Norm",
    "circular_norm",
    "double",
    "gram_iteration",
    "matrix_norm",
    "operator_norm",
    "reshaped_norm",
]

KNOWN = (
    nn.Linear, nn.Conv2d, nn.ConvTranspose2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d, Normalize, PadShortcut, nn.Flatten,
    nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip

Shape = tuple[int, ...]

METHODS = {
    "exact": "largest eigenvalue of the Gram matrix of the layer's whole map",
    "exact, centred": "exact, with the mean row taken off, which no difference of logits sees",
    "fourier": "largest norm of the kernel's Fourier blocks on a grid where nothing wraps round",
    "circular": "largest norm of the kernel's Fourier blocks on the circle that the padding makes of the image",
    "reshaped": "norm of the reshaped kernel times how often windows overlap",
    "gram": "Gram iteration, from above for any number of steps",
    "frobenius": "root of the sum of squares of the weights",
    "separable": "exact, a Kronecker product of two one-dimensional maps",
    "scale": "exact, a diagonal or a map that only moves and drops entries",
    "row sums": "exact, largest sum of a row's absolute weights",
}
"""What the words in `Norm.method` mean; every one is a bound from above."""


@dataclass(frozen=True)
class Norm:
    """An upper bound of a layer's operator norm.

    Args:
        value: The bound, rounding included.
        method: One of `METHODS`.
        output_shape: What the layer makes of one input of the shape asked for, without the batch.
    """

    value: float
    method: str
    output_shape: Shape


def operator_norm(layer: nn.Module, input_shape: Sequence[int], *, memory: int = 2**31) -> Norm:
    """Return an upper bound of the 2-norm of an affine layer's linear part, in float64.

    Dense layers: the largest eigenvalue of the smaller Gram matrix. Convolutions: the smallest of the bounds in
    `iclr18cli.certify.convolution` and, where it is affordable, the exact value from the Gram matrix of the whole map;
    on a circle the Fourier blocks are exact for any size. A deconvolution is the adjoint of the convolution with its
    weight, so it has the norm of that. Pooling by averages: exact, as a Kronecker product of two one-dimensional maps.

    Args:
        layer: Linear, Conv2d (zero or circular padding), ConvTranspose2d, AvgPool2d, AdaptiveAvgPool2d, BatchNorm
            (running statistics), Normalize, PadShortcut, Flatten, Unflatten, Identity or Dropout; in evaluation mode.
        input_shape: Shape of one input, without the batch.
        memory: Bytes the matrices of this layer may take.

    Raises:
        UserError: The layer has no known bound, or a weight is not finite.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        >>> round(operator_norm(layer, (2,)).value, 6)
        5.0
    """
    shape = tuple(input_shape)
    admit(layer)
    match layer:
        case nn.Linear():
            return _linear(layer, shape, memory)
        case nn.Conv2d():
            return Norm(*convolution(layer, shape, memory))
        case nn.ConvTranspose2d():
            return Norm(*deconvolution(layer, shape, memory))
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return _average_pool(layer, shape)
        case nn.BatchNorm1d() | nn.BatchNorm2d():  # one forward, of their common base
            return Norm(batch_norm_scale(layer), "scale", shape)
        case Normalize():
            return Norm(_outward(float((1 / double(layer.std)).max())), "scale", shape)
        case PadShortcut():
            channels, *image = shape
            return Norm(1.0, "scale", (channels + layer.channels, *(-(-n // layer.stride) for n in image)))
        case nn.Flatten() | nn.Unflatten():
            return Norm(1.0, "scale", tuple(layer(torch.empty(1, *shape, device="meta")).shape[1:]))
    return Norm(1.0, "scale", shape)  # Identity and Dropout, in evaluation mode


def reshaped_norm(weight: Tensor, transposed: bool = False) -> float:
    """Return the spectral norm of a kernel reshaped to a matrix with one row per output channel.

    What spectral normalisation divides by. It is no bound of the convolution's operator norm, which is up to
    sqrt(rows columns) times as large; equal for 1x1 kernels.

    Args:
        weight: (O, I, a, b), or (O, I) of a dense layer; any floating type.
        transposed: The weight of a deconvolution, (I, O, a, b).

    Example:
        >>> kernel = torch.ones(1, 1, 3, 3)
        >>> round(reshaped_norm(kernel), 6), round(circular_norm(kernel, 8), 6)
        (3.0, 9.0)
    """
    return matrix_norm(double(weight.transpose(0, 1) if transposed else weight).flatten(1))


def admit(layer: nn.Module) -> None:
    """Refuse a layer whose norms are not known.

    Raises:
        UserError: Its kind is not among `KNOWN`, or a weight is not finite.
    """
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{type(layer).__name__} has numbers that are not finite, so it has no operator norm.",
                why=f"looked at '{name}', shape {tuple(value.shape)}",
                fix="certify a checkpoint from before the training diverged",
            )
    if not plain(layer, KNOWN):
        raise UserError(
            f"No operator norm is known for the layer {type(layer).__name__}.",
            why=f"known: {', '.join(dict.fromkeys(kind.__name__ for kind in KNOWN))}, each with its own forward and "
            "without hooks",
            fix="build the network from these layers, or certify it by another method",
        )


def _outward(value: float, relative: float = 1e-14) -> float:
    return value * (1 + relative)


def _linear(layer: nn.Linear, shape: Shape, memory: int) -> Norm:
    weight, output = double(layer.weight), (*shape[:-1], layer.out_features)
    side = min(weight.shape)
    if side <= EXACT_SIDE and 3 * 8 * side * side <= memory:
        return Norm(matrix_norm(weight), "exact", output)
    if 4 * 8 * side * side <= memory:
        return Norm(gram_iteration(weight, steps=4), "gram", output)
    return Norm(_outward(float(torch.linalg.matrix_norm(weight)), 1e-12 * side), "frobenius", output)


def _average_pool(layer: nn.AvgPool2d | nn.AdaptiveAvgPool2d, shape: Shape) -> Norm:
    """Take the product of the norms along height and width: the map is a Kronecker product, the windows are boxes."""
    adaptive = isinstance(layer, nn.AdaptiveAvgPool2d)
    if not adaptive and layer.divisor_override is not None and layer.ceil_mode:
        raise UserError("No operator norm is known for average pooling with divisor_override and ceil_mode together.")
    norm, output = 1.0, list(shape)
    for axis in (-2, -1):
        eye = torch.eye(shape[axis], dtype=torch.float64)[:, None]
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            pooled = F.adaptive_avg_pool1d(eye, _pair(layer.output_size)[axis] or shape[axis])
        else:
            size, stride = _pair(layer.kernel_size)[axis], _pair(layer.stride)[axis]
            padding, whole = _pair(layer.padding)[axis], layer.divisor_override is not None
            pooled = F.avg_pool1d(eye, size, stride, padding, layer.ceil_mode, layer.count_include_pad or whole)
        norm *= matrix_norm(pooled[:, 0])
        output[axis] = pooled.shape[-1]
    if isinstance(layer, nn.AvgPool2d) and layer.divisor_override is not None:
        norm *= math.prod(_pair(layer.kernel_size)) / layer.divisor_override
    return Norm(_outward(norm), "separable", tuple(output))


def _pair(value: int | Sequence[int | None] | None) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) or value is None else tuple(value)  # type: ignore[return-value]


def batch_norm_scale(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
    """Return the largest factor by which a batch normalisation in evaluation mode scales a channel.

    Raises:
        UserError: It keeps no running statistics.
    """
    if layer.running_var is None:
        raise UserError(
            f"{type(layer).__name__} without running statistics mixes the examples of a batch, so it has no norm.",
            why="track_running_stats=False",
            fix="train with running statistics",
        )
    scale = (double(layer.running_var) + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * double(layer.weight).abs()
    return _outward(float(scale.max()))
