"""Size of the gradient of the paper's networks, dense and compressed: Tables 3 to 5, exact. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """Gradient sizes of one network.

    Args:
        weights: Entries of the sparsified tensors.
        whole: Entries of biases and norms.
        sent: Entries sent of the sparsified tensors.
    """

    weights: int
    whole: int
    sent: float

    @property
    def dense_mib(self) -> float:
        """MiB of the gradient in 32 bits."""
        return 4 * (self.weights + self.whole) / MIB

    @property
    def sent_mib(self) -> float:
        """MiB of 48 bits per entry sent, and 32 per entry of biases and norms; fillers are not counted."""
        return (6 * self.sent + 4 * self.whole) / MIB

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.dense_mib / self.sent_mib


def size_of(shapes: Sequence[Shape], density: float = 0.001, *, whole_entries: bool = False) -> Size:
    """Return the sizes for tensors of these shapes.

    Args:
        shapes: Of all parameters; those with one axis are sent whole.
        density: Share of the entries that is sent.
        whole_entries: Count ceil(density n) entries of each tensor, as they are sent, and not density n of all
            together, as the paper's tables come out.

    Example:
        >>> resnet50 = size_of(NETWORKS["ResNet-50"])
        >>> f"{resnet50.dense_mib:.2f} MiB -> {resnet50.sent_mib:.3f} MiB, {resnet50.ratio:.1f} times smaller"
        '97.49 MiB -> 0.352 MiB, 276.7 times smaller'
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1]; received density={density!r}")
    counts = [math.prod(shape) for shape in shapes if len(shape) > 1]
    whole = sum(math.prod(shape) for shape in shapes if len(shape) <= 1)
    sent = sum(math.ceil(density * n) for n in counts) if whole_entries else density * sum(counts)
    return Size(sum(counts), whole, sent)


def resnet50(classes: int = 1000) -> list[Shape]:
    """Return the shapes of ResNet-50, He et al. (2016), Table 1: every convolution without bias, with a norm behind."""
    shapes: list[Shape] = []

    def convolution(fan_in: int, filters: int, kernel: int) -> None:
        shapes.extend([(filters, fan_in, kernel, kernel), (filters,), (filters,)])

    convolution(3, 64, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(channels, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if block == 0:
                convolution(channels, 4 * width, 1)  # projection shortcut
            channels = 4 * width
    return [*shapes, (classes, channels), (classes,)]


def ptb_lstm(vocabulary: int = 10_000, hidden: int = 1500, layers: int = 2) -> list[Shape]:
    """Return the shapes of the PTB language model: embedding tied with the output, two bias vectors a layer."""
    layer: list[Shape] = [(4 * hidden, hidden), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    return [(vocabulary, hidden), *layer * layers, (vocabulary,)]


def alexnet(classes: int = 1000) -> list[Shape]:
    """Return the shapes of AlexNet with two groups in its second, fourth and fifth convolution."""
    convolutions: list[Shape] = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    dense: list[Shape] = [(4096, 9216), (4096, 4096), (classes, 4096)]
    return [part for shape in (*convolutions, *dense) for part in (shape, shape[:1])]


NETWORKS: dict[str, list[Shape]] = {"ResNet-50": resnet50(), "PTB LSTM": ptb_lstm(), "AlexNet": alexnet()}
"""Network of the paper's tables -> shapes of its parameters."""

PRINTED: dict[str, tuple[float, float, int]] = {
    "ResNet-50": (97.49, 0.35, 277), "PTB LSTM": (194.68, 0.42, 462), "AlexNet": (232.56, 0.39, 597),
}  # fmt: skip
"""Network -> (MB of the gradient, MB sent, ratio) as printed in the paper."""
