"""Generator and critic: the two halves of a GAN in one module, the paper's standard CNN, and what they share.

B batch · C channels · H height · W width · D features · K classes, 0 without any · Z latent dimensions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from iclr18_sngan.config import Norm
from iclr18_sngan.normalization import spectral_norm
from iclr18cli.models.layers import Normalize
from iclr18cli.models.modes import device_of
from iclr18cli.models.vision import image_shape, positive

SLOPE = 0.2
"""Of the leaky ReLU, as in the authors' code (their framework's default)."""

NORMS = get_args(Norm)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


class Conditional(nn.Module):
    """A part of a generator that is also told the class: forward(h, y)."""


def told(layer: nn.Module, h: Tensor, y_B: Tensor | None) -> Tensor:
    """Return what a part of a generator makes of h, told the class if it asks for it."""
    made: Tensor = layer(h, y_B) if isinstance(layer, Conditional) else layer(h)
    return made


class ConditionalBatchNorm(Conditional):
    """Batch normalisation whose scale and shift are the class's own, (B, C, H, W) and (B,) to (B, C, H, W)."""

    def __init__(self, C: int, K: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(C, affine=False)
        self.scale, self.shift = nn.Embedding(K, C), nn.Embedding(K, C)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, h: Tensor, y_B: Tensor) -> Tensor:
        """Return gamma_y h' + beta_y, h' normalised."""
        gamma, beta = (part(y_B)[:, :, None, None] for part in (self.scale, self.shift))
        return gamma * self.norm(h) + beta


def batch_norm(C: int, K: int) -> nn.Module:
    """Return the normalisation of a generator: conditional where there are classes."""
    return ConditionalBatchNorm(C, K) if K else nn.BatchNorm2d(C)


class Generator(nn.Module):
    """z, and the class where there are any, to images in [low, high].

    Args:
        layers: (B, Z) to (B, C, H, W) through `tanh`; those that are `Conditional` are told the class.
        latent: Z.
        limits: (low, high).
    """

    def __init__(self, layers: Sequence[nn.Module], latent: int, limits: tuple[float, float]):
        super().__init__()
        self.layers, self.latent, self.limits = nn.ModuleList(layers), latent, limits

    def forward(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return images, (B, C, H, W) float32."""
        h = z_BZ
        for layer in self.layers:
            h = told(layer, h, y_B)
        low, high = self.limits
        return (low + high) / 2 + (high - low) / 2 * h.float().tanh()


class Critic(nn.Module):
    """D(x) = w . phi(x) + b, plus e_y . phi(x) where there are classes (the projection of Miyato and Koyama 2018).

    Args:
        features: phi, (B, C, H, W) to (B, D), layers that certificates can walk.
        head: (B, D) to (B, 1).
        embedding: K x D; None: no classes.
    """

    def __init__(self, features: nn.Sequential, head: nn.Linear, embedding: nn.Embedding | None):
        super().__init__()
        self.features, self.head, self.embedding = features, head, embedding

    def forward(self, x: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return D(x, y), (B,) float32."""
        phi = self.features(x)
        score = self.head(phi)[:, 0]
        if self.embedding is not None:
            score = score + (self.embedding(y_B) * phi).sum(1)
        return score.float()

    def scores(self, x: Tensor) -> Tensor:
        """Return (B, K) values, one for each class the images might be of; (B, 1) without classes."""
        phi = self.features(x)
        score = self.head(phi)
        return score if self.embedding is None else score + phi @ self.embedding.weight.T


class GAN(nn.Module):
    """Generator and critic. Calling it gives the critic's scores, (B, max(K, 1))."""

    def __init__(self, generator: Generator, critic: Critic, classes: int):
        super().__init__()
        self.generator, self.critic, self.classes = generator, critic, classes

    def forward(self, x: Tensor) -> Tensor:
        """Return `Critic.scores`."""
        return self.critic.scores(x)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return (z, y): N(0, I) and, where there are classes, uniform ones; on the generator's device."""
        z = torch.randn(count, self.generator.latent, generator=generator, device=generator.device)
        if not self.classes:
            return z, None
        return z, torch.randint(self.classes, (count,), generator=generator, device=generator.device)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return G(z) for draws of a CPU generator, on the network's device."""
        device = device_of(self, torch.device("cpu"))
        z, y = self.draw(count, generator)
        return self.generator(z.to(device), None if y is None else y.to(device))


def halvings(size: int, *, floor: int, at_most: int) -> int:
    """Return how often a side can be halved while it is even and above `floor`.

    Example:
        >>> [halvings(side, floor=4, at_most=3) for side in (32, 28, 8, 96)]
        [3, 2, 1, 3]
    """
    count = 0
    while count < at_most and size % 2 == 0 and size > floor:
        size, count = size // 2, count + 1
    return count


def plan(input_shape: Sequence[int], **counts: int) -> tuple[int, int, int, int]:
    """Return (C, H, W, how often a generator doubles its smallest image: three times at most).

    Raises:
        TypeError, ValueError: A side cannot be halved, or one of the counts is no whole number above 0.
    """
    C, H, W = image_shape(input_shape, at_least=6)
    positive(**counts)
    stages = min(halvings(side, floor=4, at_most=3) for side in (H, W))
    if not stages:
        raise ValueError(f"sides must be even; received input_shape={tuple(input_shape)!r}")
    return C, H, W, stages


def dcgan(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 0,
    latent: int = 128,
    width: int = 16,
    norm: str = "sn",
    mode: str = "reshape",
    power_iterations: int = 1,
    limits: Sequence[float] = (0.0, 1.0),
) -> GAN:
    """Build the standard CNN of the paper's appendix B; at width 64 and 3x32x32 it is the authors'.

    Critic: 3x3 convolutions, and 4x4 ones of stride 2 while the side is even and above 4, three at most: filters w, 2w,
    2w, 4w, 4w, 8w, 8w; leaky ReLU after each; a dense layer. Generator: dense to the smallest image, deconvolutions 4x4
    of stride 2 with batch normalisation and ReLU, a 3x3 convolution, tanh. Weights from N(0, 0.02^2), biases 0.

    Args:
        input_shape: (C, H, W); sides are even and above 4.
        classes: K of a conditional GAN; 0: none.
        latent: Z.
        width: w.
        norm: What holds the critic: sn, wn, bn, ln change the network; none, clip, gp, orthonormal do not.
        mode, power_iterations: Of sn; see `normalization.spectral_norm`.
        limits: (low, high) of the pixels; the critic takes them to [-1, 1] first.

    Raises:
        ValueError: A side cannot be halved, or a value is unknown.
    """
    C, H, W, stages = plan(input_shape, latent=latent, width=width)
    between = normalisation(norm)
    down: list[nn.Module] = [first(C, limits), nn.Conv2d(C, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
    filters = width
    for _ in range(stages):
        for kernel, stride, made in ((4, 2, 2 * filters), (3, 1, 2 * filters)):
            down += [nn.Conv2d(filters, made, kernel, stride, 1), *between(made), nn.LeakyReLU(SLOPE)]
            filters = made
    h, w = H >> stages, W >> stages
    critic = make_critic([*down, nn.Flatten()], filters * h * w, classes)
    up: list[nn.Module] = [nn.Linear(latent, filters * h * w), nn.Unflatten(1, (filters, h, w))]
    up += [batch_norm(filters, classes), nn.ReLU()]
    for _ in range(stages):
        up += [nn.ConvTranspose2d(filters, filters // 2, 4, 2, 1), batch_norm(filters // 2, classes), nn.ReLU()]
        filters //= 2
    up.append(nn.Conv2d(filters, C, 3, padding=1))
    for layer in [*up, *critic.modules()]:
        if isinstance(layer, WEIGHTED):
            nn.init.normal_(layer.weight, std=0.02)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    hold(critic, (C, H, W), norm, mode, power_iterations)
    return GAN(Generator(up, latent, (limits[0], limits[1])), critic, classes)


def first(C: int, limits: Sequence[float]) -> Normalize:
    """Return the critic's first layer, which takes pixels in [low, high] to [-1, 1]."""
    low, high = limits
    return Normalize([(low + high) / 2] * C, [(high - low) / 2] * C)


def make_critic(features: Sequence[nn.Module], D: int, K: int, *, bias: bool = True) -> Critic:
    """Return the critic on features of D numbers."""
    return Critic(nn.Sequential(*features), nn.Linear(D, 1, bias=bias), nn.Embedding(K, D) if K else None)


def normalisation(norm: str) -> Callable[[int], list[nn.Module]]:
    """Return what follows a convolution of the critic that makes C channels: batch or layer normalisation, or nothing.

    Raises:
        ValueError: Unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; received norm={norm!r}")
    if norm == "bn":
        return lambda C: [nn.BatchNorm2d(C)]
    if norm == "ln":
        return lambda C: [nn.GroupNorm(1, C)]
    return lambda C: []


def hold(critic: Critic, input_shape: Sequence[int], norm: str, mode: str, power_iterations: int) -> None:
    """Parametrise every weight of a critic in place, for spectral or weight normalisation; others need nothing here."""
    if norm not in ("sn", "wn"):
        return
    sizes = _input_sizes(critic, input_shape) if norm == "sn" and mode == "operator" else {}
    for layer in [part for part in critic.modules() if isinstance(part, WEIGHTED)]:
        if norm == "wn":
            weight_norm(layer)
        else:
            spectral_norm(
                layer,
                mode=mode,  # type: ignore[arg-type]
                n_power_iterations=power_iterations,
                input_size=sizes.get(layer),
            )


def _input_sizes(critic: Critic, input_shape: Sequence[int]) -> dict[nn.Module, tuple[int, int]]:
    """Return the height and width of what every convolution sees, from one pass of an image."""
    found: dict[nn.Module, tuple[int, int]] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[layer] = (given[0].shape[2], given[0].shape[3])

    hooks = [part.register_forward_pre_hook(note) for part in critic.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        like = critic.head.weight
        critic.features(like.new_zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return found
