"""Shared networks for images and vectors, as chains of modules that a certificate can walk layer by layer.

Every network takes raw inputs in the declared range of its data set; `mean` and `std` become its first layer. All
activations, poolings and shortcuts are modules; none works in place.
"""

# B batch · C channels · H height · W width · K classes

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from iclr18cli.models.activations import activation as make_activation
from iclr18cli.models.layers import Normalize as Normalize
from iclr18cli.models.layers import PadShortcut, Residual, first_layer


def positive(**counts: int) -> None:
    """Raise TypeError or ValueError unless every named count is a whole number above 0."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} must be a whole number; received {name}={count!r}")
        if count < 1:
            raise ValueError(f"{name} must be >= 1; received {name}={count!r}")


def image_shape(input_shape: Sequence[int], *, at_least: int) -> tuple[int, int, int]:
    """Return (C, H, W), or raise ValueError unless it is an image of at least that height and width."""
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (channels, height, width); received input_shape={tuple(input_shape)!r}")
    C, H, W = input_shape
    positive(channels=C, height=H, width=W)
    if min(H, W) < at_least:
        raise ValueError(f"images must be at least {at_least}x{at_least}; received input_shape={tuple(input_shape)!r}")
    return C, H, W


def extent(size: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Return the height or width that a convolution or pooling puts out.

    Example:
        >>> extent(28, 8, stride=2, padding=3)
        14
    """
    return (size + 2 * padding - kernel) // stride + 1


def mlp(
    *,
    input_shape: Sequence[int] = (1, 8, 8),
    classes: int = 10,
    hidden: Sequence[int] = (64, 64),
    activation: str = "elu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build dense layers with an activation after each but the last: (B, *input_shape) to logits (B, K).

    Sum over consecutive widths of `(fan_in + 1) * fan_out` parameters; 8,970 with the defaults.

    Args:
        input_shape: Shape of one input.
        classes: Number of logits K.
        hidden: Widths of the hidden layers; empty: a linear classifier.
        activation: See `iclr18cli.models.activations`.
        mean, std: See `iclr18cli.models.layers.Normalize`.

    Raises:
        TypeError, ValueError: A width or shape is not a whole number above 0.
    """
    if not input_shape:
        raise ValueError(f"input_shape must hold at least one size; received input_shape={input_shape!r}")
    positive(classes=classes, **{f"input_shape[{i}]": n for i, n in enumerate(input_shape)})
    positive(**{f"hidden[{i}]": n for i, n in enumerate(hidden)})
    layers = first_layer(input_shape, mean, std)
    if len(input_shape) != 1:
        layers.append(nn.Flatten())
    widths = (prod(input_shape), *hidden)
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), make_activation(activation)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def small_cnn(
    *,
    input_shape: Sequence[int] = (1, 8, 8),
    classes: int = 10,
    filters: int = 16,
    activation: str = "elu",
    downsampling: str = "stride",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build three 3x3 convolutions with f, 2f, 4f filters and a dense layer: (B, C, H, W) to logits (B, K).

    The second and third halve the image. There is no max-pooling, so the network is as smooth as its activation.
    25,866 parameters with the defaults.

    Args:
        input_shape: (C, H, W), at least 4x4.
        classes: Number of logits K.
        filters: f, filters of the first convolution.
        activation: See `iclr18cli.models.activations`.
        downsampling: "stride" (convolutions of stride 2) or "average" (2x2 average pooling after the activation).
        mean, std: See `iclr18cli.models.layers.Normalize`.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(input_shape, at_least=4)
    positive(classes=classes, filters=filters)
    if downsampling not in ("stride", "average"):
        raise ValueError(f"downsampling must be 'stride' or 'average'; received downsampling={downsampling!r}")
    layers = first_layer(input_shape, mean, std)
    layers += [nn.Conv2d(C, filters, 3, padding=1), make_activation(activation)]
    for width in (filters, 2 * filters):
        stride = 2 if downsampling == "stride" else 1
        layers += [nn.Conv2d(width, 2 * width, 3, stride=stride, padding=1), make_activation(activation)]
        if downsampling == "average":
            layers.append(nn.AvgPool2d(2))
            H, W = extent(H, 2, stride=2), extent(W, 2, stride=2)
        else:
            H, W = extent(H, 3, stride=2, padding=1), extent(W, 3, stride=2, padding=1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * filters * H * W, classes))


def lenet5(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    activation: str = "relu",
    pooling: str = "max",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build LeNet-5 (LeCun et al. 1998, section II.B) in its usual PyTorch form: (B, C, H, W) to logits (B, K).

    Convolutions 6@5x5 (padding 2, so that 28x28 stands for the padded 32x32) and 16@5x5, each followed by 2x2 pooling;
    dense 120, 84, K. 61,706 parameters for 1x28x28 and 10 classes. The original's trainable subsampling, partial
    connection table and RBF outputs are left out, as is usual. ReLU and max-pooling are the usual choices;
    `activation="tanh", pooling="average"` comes nearest to the original and is smooth.

    Args:
        input_shape: (C, H, W), at least 12x12.
        classes: Number of logits K.
        activation: See `iclr18cli.models.activations`.
        pooling: "max" or "average".
        mean, std: See `iclr18cli.models.layers.Normalize`.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(input_shape, at_least=12)
    positive(classes=classes)
    if pooling not in ("max", "average"):
        raise ValueError(f"pooling must be 'max' or 'average'; received pooling={pooling!r}")
    pool = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    area = prod(extent(extent(n // 2, 5), 2, stride=2) for n in (H, W))
    layers = first_layer(input_shape, mean, std)
    layers += [nn.Conv2d(C, 6, 5, padding=2), make_activation(activation), pool(2)]
    layers += [nn.Conv2d(6, 16, 5), make_activation(activation), pool(2), nn.Flatten()]
    layers += [nn.Linear(16 * area, 120), make_activation(activation), nn.Linear(120, 84), make_activation(activation)]
    return nn.Sequential(*layers, nn.Linear(84, classes))


def resnet20(
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    activation: str = "relu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build the 20-layer residual network for CIFAR: `resnet` of depth 20 without dropout.

    269,722 parameters for 3x32x32 and 10 classes.

    Args:
        input_shape, classes, activation, mean, std: See `resnet`.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    return resnet(input_shape=input_shape, classes=classes, activation=activation, mean=mean, std=std)


def resnet(
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    depth: int = 20,
    dropout: float = 0.0,
    activation: str = "relu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build a residual network for CIFAR, He et al. (2016), section 4.2: (B, C, H, W) to logits (B, K).

    3x3 convolution, three stages of (depth - 2) / 6 blocks with 16, 32, 64 filters, global average pooling, dense
    layer; shortcuts without parameters (option A), zero channels appended last. He initialisation (fan-out). The stages
    see images of 32, 16 and 8 pixels a side.

    Args:
        input_shape: (C, H, W), at least 4x4.
        classes: Number of logits K.
        depth: 6n + 2: 20, 32, 44, 56, 110; 8 is the smallest.
        dropout: Between the two convolutions of a block, in [0, 1); 0 leaves the layer out.
        activation: After every convolution's normalisation and after every sum.
        mean, std: See `iclr18cli.models.layers.Normalize`.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(input_shape, at_least=4)
    positive(classes=classes)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2: 8, 14, 20, …; received depth={depth}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); received dropout={dropout}")
    layers = first_layer(input_shape, mean, std)
    layers += [*_convolution(C, 16, stride=1), make_activation(activation)]
    width = 16
    for filters in (16, 32, 64):
        for _ in range(depth // 6):
            stride = 1 if filters == width else 2
            block = nn.Sequential(
                *_convolution(width, filters, stride=stride),
                make_activation(activation),
                *([nn.Dropout(dropout)] if dropout else []),
                *_convolution(filters, filters, stride=1),
            )
            shortcut = nn.Identity() if stride == 1 else PadShortcut(stride, filters - width)
            layers += [Residual(block, shortcut), make_activation(activation)]
            width = filters
    pool = nn.AvgPool2d((-(-H // 4), -(-W // 4)))
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(width, classes))


def _convolution(width: int, filters: int, *, stride: int) -> tuple[nn.Module, nn.Module]:
    """Return a 3x3 convolution without bias, initialised after He et al. (2015), and its batch normalisation."""
    convolution = nn.Conv2d(width, filters, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(filters)
