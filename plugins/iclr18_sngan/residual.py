"""The residual generator and critic of the paper.

B batch · C channels · H height · W width · K classes, 0 without any · Z latent dimensions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from iclr18_sngan.model import (
    GAN,
    WEIGHTED,
    Conditional,
    Generator,
    batch_norm,
    first,
    halvings,
    hold,
    make_critic,
    normalisation,
    plan,
    told,
)
from iclr18cli.models.layers import Residual


class UpBlock(Conditional):
    """BN-ReLU-upsample-conv3-BN-ReLU-conv3 with a 1x1 shortcut after upsampling: (B, c, h, w) to (B, C, 2h, 2w)."""

    def __init__(self, c: int, C: int, K: int):
        super().__init__()
        self.norms = nn.ModuleList([batch_norm(c, K), batch_norm(C, K)])
        self.convolutions = nn.ModuleList([nn.Conv2d(c, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)])
        self.shortcut = nn.Conv2d(c, C, 1)
        self.activation, self.larger = nn.ReLU(), nn.Upsample(scale_factor=2)

    def forward(self, h: Tensor, y_B: Tensor | None) -> Tensor:
        """Return the block's output plus the shortcut's."""
        one, two = self.norms
        inner = self.convolutions[0](self.larger(self.activation(told(one, h, y_B))))
        inner = self.convolutions[1](self.activation(told(two, inner, y_B)))
        # A 1x1 convolution and nearest upsampling commute: a quarter of the work, the same numbers.
        return inner + self.larger(self.shortcut(h))


def resnet(
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 0,
    latent: int = 128,
    width: int = 16,
    norm: str = "sn",
    mode: str = "reshape",
    power_iterations: int = 1,
    limits: Sequence[float] = (0.0, 1.0),
) -> GAN:
    """Build the residual networks of appendix B; at width 128 and 3x32x32 they are the authors' for CIFAR-10.

    Critic: a block that halves the image (conv-ReLU-conv-pool; shortcut pool-1x1), blocks ReLU-conv-ReLU-conv(-pool)
    that halve it while the side is even and above 8, two that do not, ReLU, sum over the image, a dense layer without
    bias. Generator with 2w filters: dense to the smallest image, an up-block per halving, BN, ReLU, conv3, tanh. Glorot
    uniform, gain sqrt 2 for the 3x3 convolutions inside blocks and 1 elsewhere; biases 0.

    Args:
        input_shape: (C, H, W); sides are even and above 4.
        classes, latent, norm, mode, power_iterations, limits: See `dcgan`.
        width: w filters of the critic.
    """
    C, H, W, ups = plan(input_shape, latent=latent, width=width)
    downs = max(1, min(halvings(side, floor=8, at_most=3) for side in (H, W)))
    between = normalisation(norm)
    pool = lambda: nn.AvgPool2d(2)
    down: list[nn.Module] = [first(C, limits)]
    block: list[nn.Module] = [nn.Conv2d(C, width, 3, padding=1), *between(width), nn.ReLU()]
    block += [nn.Conv2d(width, width, 3, padding=1), pool()]
    down.append(Residual(nn.Sequential(*block), nn.Sequential(pool(), nn.Conv2d(C, width, 1))))
    for number in range(downs + 1):
        halves = number < downs - 1
        block = []
        for _ in (0, 1):
            block += [*between(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        shortcut = nn.Sequential(nn.Conv2d(width, width, 1), pool()) if halves else nn.Identity()
        down.append(Residual(nn.Sequential(*block, *([pool()] if halves else [])), shortcut))
    total = nn.AvgPool2d((H >> downs, W >> downs), divisor_override=1)
    critic = make_critic([*down, nn.ReLU(), total, nn.Flatten()], width, classes, bias=False)
    h, w, filters = H >> ups, W >> ups, 2 * width
    up: list[nn.Module] = [nn.Linear(latent, filters * h * w), nn.Unflatten(1, (filters, h, w))]
    up += [UpBlock(filters, filters, classes) for _ in range(ups)]
    up += [batch_norm(filters, classes), nn.ReLU(), nn.Conv2d(filters, C, 3, padding=1)]
    generator = Generator(up, latent, (limits[0], limits[1]))
    for net in (generator, critic):
        for name, layer in net.named_modules():
            if isinstance(layer, WEIGHTED) and not name.endswith((".scale", ".shift")):
                _start(layer, inside=name.count(".") > 1)
    hold(critic, (C, H, W), norm, mode, power_iterations)
    return GAN(generator, critic, classes)


def _start(layer: Any, *, inside: bool) -> None:
    gain = math.sqrt(2) if inside and getattr(layer, "kernel_size", None) == (3, 3) else 1.0
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
