"""The two networks of the paper's experiments, Sinha et al. (2018)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from iclr18cli.models.activations import activation as make_activation
from iclr18cli.models.layers import first_layer
from iclr18cli.models.vision import extent, image_shape, mlp, positive

INITS = ("glorot", "torch")


def elu_cnn(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    filters: int = 64,
    activation: str = "elu",
    init: str = "glorot",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build the paper's MNIST network: (B, C, H, W) to logits (B, K).

    Convolutions f@8x8 (stride 2, padding 3), 2f@6x6 (stride 2) and 2f@5x5, an activation after each, one dense layer.
    The paper gives kernel sizes, ELU and the dense layer; filters, strides and paddings are the authors' code's ("same"
    at 28 pixels is padding 3). 710,218 parameters with the defaults; `filters=16` is the quarter-size net with 45,466.

    Args:
        input_shape: (C, H, W), at least 28x28.
        classes: Number of logits K.
        filters: f, filters of the first convolution.
        activation: See `iclr18cli.models.activations`; certificates need a smooth one.
        init: "glorot": Glorot-uniform weights and zero biases, Keras's defaults and so what the authors' code starts
            from; "torch": PyTorch's defaults.
        mean, std: See `iclr18cli.models.layers.Normalize`. The authors use neither.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(input_shape, at_least=28)
    positive(classes=classes, filters=filters)
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; received init={init!r}")
    layers = first_layer(input_shape, mean, std)
    layers += [nn.Conv2d(C, filters, 8, stride=2, padding=3), make_activation(activation)]
    layers += [nn.Conv2d(filters, 2 * filters, 6, stride=2), make_activation(activation)]
    layers += [nn.Conv2d(2 * filters, 2 * filters, 5), make_activation(activation)]
    height, width = (extent(extent(extent(n, 8, stride=2, padding=3), 6, stride=2), 5) for n in (H, W))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * filters * height * width, classes))
    if init == "glorot":
        net.apply(_glorot)
    return net


def two_four_two(
    *,
    input_shape: Sequence[int] = (2,),
    classes: int = 2,
    activation: str = "elu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Build the paper's network for the synthetic task: (B, 2) to logits (B, K).

    Dense 2 -> 4 -> 2 with an activation after each hidden layer, then a dense layer to the logits. 28 parameters with
    the defaults. PyTorch's default initialisation (the authors' code has no such net).

    Args:
        input_shape: Shape of one input; (2,) in the paper.
        classes: Number of logits K.
        activation: "elu" and "relu" in the paper.
        mean, std: See `iclr18cli.models.layers.Normalize`.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    return mlp(input_shape=input_shape, classes=classes, hidden=(4, 2), activation=activation, mean=mean, std=std)


def _glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
