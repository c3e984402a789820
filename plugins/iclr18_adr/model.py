"""G, C and C' in one module that other commands rebuild by name; its forward pass is the classifier one evaluates."""

# B batch · C channels · H height · W width · D features · K classes

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.models.vision import extent, image_shape, positive, resnet


class Fit(nn.Module):
    """Bring images of either domain to one shape: (B, C', H', W') to (B, C, H, W) in the same range.

    Grey images are repeated over the channels, colours averaged to grey; sizes change bilinearly, with antialiasing
    where they shrink. It is a layer, so that the saved model takes the target's raw images.
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images at G's shape; themselves if they have it."""
        C, H, W = self.shape
        if x.shape[1] != C:
            x = x.expand(-1, C, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)
        if x.shape[2:] != (H, W):
            x = F.interpolate(x, size=(H, W), mode="bilinear", align_corners=False, antialias=True)
        return x


class Adapted(nn.Module):
    """Images of any size to logits (B, K): C(G(fit(x))), or C'(G(fit(x))) if `predict` is "cprime".

    Attributes:
        fit: Brings images to the shape G takes.
        features: G, (B, C, H, W) to (B, D).
        classifier: C, (B, D) to (B, K), with dropout.
        second: C', trained on the source alone; for MCD its second head F2.
    """

    def __init__(self, shape: Sequence[int], features: nn.Module, heads: Sequence[nn.Module], predict: str):
        super().__init__()
        if predict not in ("c", "cprime"):
            raise ValueError(f"predict must be 'c' or 'cprime'; received predict={predict!r}")
        self.fit, self.features = Fit(shape), features
        self.classifier, self.second = heads
        self.predict = predict

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classifier that `predict` names."""
        head = self.second if self.predict == "cprime" else self.classifier
        return head(self.features(self.fit(x)))


def dense_head(widths: Sequence[int], classes: int, *, dropout: float, on_features: bool) -> nn.Sequential:
    """Return Linear, BN, ReLU, Dropout for each pair of widths, then Linear to K; dropout on the features if asked."""
    layers: list[nn.Module] = [nn.Dropout(dropout)] if on_features else []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _adapted(
    shape: Sequence[int], layers: Sequence[nn.Module], widths: Sequence[int], *, classes: int, dropout: float,
    predict: str, on_features: bool = True,
) -> Adapted:  # fmt: skip
    positive(classes=classes)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); received dropout={dropout}")
    heads = [dense_head(widths, classes, dropout=dropout, on_features=on_features) for _ in range(2)]
    return Adapted(shape, nn.Sequential(*layers, nn.Flatten()), heads, predict)


def _block(fan_in: int, fan_out: int, kernel: int, padding: int, pool: nn.Module | None) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(fan_in, fan_out, kernel, padding=padding), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return [*layers, pool] if pool is not None else layers


def small(
    *, input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, shape: Sequence[int] = (), dropout: float = 0.5,
    predict: str = "c",
) -> Adapted:  # fmt: skip
    """Build the network for very small images: 3x3 convolutions 32-64 with 2x2 max-pooling, dense 128.

    Args:
        input_shape: (C, H, W) of the images that the saved model is given, those of the target.
        classes: K.
        shape: (C, H, W) that G takes, at least 4x4; empty: `input_shape`.
        dropout: On the features and after the hidden layer of either classifier.
        predict: "c" or "cprime".

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(shape or input_shape, at_least=4)
    layers = [*_block(C, 32, 3, 1, nn.MaxPool2d(2)), *_block(32, 64, 3, 1, nn.MaxPool2d(2))]
    widths = (64 * (H // 4) * (W // 4), 128)
    return _adapted((C, H, W), layers, widths, classes=classes, dropout=dropout, predict=predict)


def usps(
    *, input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, shape: Sequence[int] = (), dropout: float = 0.5,
    predict: str = "c",
) -> Adapted:  # fmt: skip
    """Build the authors' network for MNIST and USPS: 5x5 convolutions 20-50, BN, ReLU, 2x2 max-pooling; dense 500.

    800 features at 28x28.

    Args:
        input_shape, classes, shape, dropout, predict: See `small`; images of at least 16x16.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(shape or input_shape, at_least=16)
    layers = [*_block(C, 20, 5, 0, nn.MaxPool2d(2)), *_block(20, 50, 5, 0, nn.MaxPool2d(2))]
    area = 1
    for size in (H, W):
        area *= extent(extent(size, 5) // 2, 5) // 2
    return _adapted((C, H, W), layers, (50 * area, 500), classes=classes, dropout=dropout, predict=predict)


def svhn(
    *, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, shape: Sequence[int] = (), dropout: float = 0.5,
    predict: str = "c",
) -> Adapted:  # fmt: skip
    """Build the authors' network for SVHN: 5x5 convolutions 64-64-128 with BN, ReLU; dense 3072-2048.

    3x3 max-pooling of stride 2 after the first two; 8,192 features at 32x32. Dropout after the dense layers only.

    Args:
        input_shape, classes, shape, dropout, predict: See `small`; images of at least 8x8.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(shape or input_shape, at_least=8)
    layers = [*_block(C, 64, 5, 2, nn.MaxPool2d(3, 2, 1)), *_block(64, 64, 5, 2, nn.MaxPool2d(3, 2, 1))]
    layers += _block(64, 128, 5, 2, None)
    area = -(-H // 4) * -(-W // 4)
    widths = (128 * area, 3072, 2048)
    return _adapted((C, H, W), layers, widths, classes=classes, dropout=dropout, predict=predict, on_features=False)


def residual(
    *, input_shape: Sequence[int] = (3, 64, 64), classes: int = 12, shape: Sequence[int] = (), dropout: float = 0.5,
    predict: str = "c", depth: int = 20, hidden: Sequence[int] = (256, 256),
) -> Adapted:  # fmt: skip
    """Build residual features (`iclr18cli.models.vision.resnet` without its last layer) and dense heads.

    For photographs such as VisDA's; trained from scratch, for the core ships no ImageNet weights.

    Args:
        input_shape, classes, shape, dropout, predict: See `small`; images of at least 4x4.
        depth: Of the residual network, 6n + 2.
        hidden: Widths of the heads' hidden layers.

    Raises:
        TypeError, ValueError: A value is out of range.
    """
    C, H, W = image_shape(shape or input_shape, at_least=4)
    layers = list(resnet(input_shape=(C, H, W), classes=classes, depth=depth))[:-1]
    widths = (64, *hidden)
    return _adapted((C, H, W), layers, widths, classes=classes, dropout=dropout, predict=predict, on_features=False)
