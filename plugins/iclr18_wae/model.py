"""Encoder and decoder: the paper's convolutional pair at any width, and a dense pair; the adversary on codes."""

# B batch · C channels · H height · W width · X the axes of one input · D latent dimensions · K noise draws

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from iclr18_wae.prior import Prior
from iclr18cli.models.activations import activation as make_activation
from iclr18cli.models.layers import Normalize
from iclr18cli.models.vision import extent, image_shape, positive

LOG_VARIANCE_RANGE = (-50.0, 50.0)


class NoiseMatrix(nn.Module):
    """A(e), the D x D matrix that an implicit encoder mixes its noise with: tanh layers of 2D, 4D, 6D units."""

    def __init__(self, D: int):
        super().__init__()
        self.D = D
        self.layers = nn.Sequential(
            nn.Linear(D, 2 * D), nn.Tanh(), nn.Linear(2 * D, 4 * D), nn.Tanh(), nn.Linear(4 * D, 6 * D), nn.Tanh(),
            nn.Linear(6 * D, D * D),
        )  # fmt: skip

    def forward(self, e_BD: Tensor) -> Tensor:
        """Return A(e), (B, D, D)."""
        return self.layers(e_BD).unflatten(1, (self.D, self.D))


class AutoEncoder(nn.Module):
    """Q(z|x) and G(z). Calling it gives reconstructions from codes without noise.

    Args:
        encoder: (B, *X) to (B, D), or (B, 2 D) for mean and log-variance.
        decoder: (B, D) to (B, *X).
        prior: P_Z.
        kind: "deterministic", "gaussian" or "implicit".
    """

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, prior: Prior, kind: str):
        super().__init__()
        if kind not in ("deterministic", "gaussian", "implicit"):
            raise ValueError(f"encoder must be deterministic, gaussian or implicit; received {kind!r}")
        if kind == "gaussian" and prior.kind != "normal":
            raise ValueError(f"a gaussian encoder needs the normal prior; received {prior.kind!r}")
        self.encoder, self.decoder, self.prior, self.kind = encoder, decoder, prior, kind
        self.mixing = NoiseMatrix(prior.D) if kind == "implicit" else None

    def posterior(self, x_BX: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (mean, log-variance) of Q(z|x), (B, D) each; no log-variance unless it is gaussian."""
        out = self.encoder(x_BX).float()
        if self.kind != "gaussian":
            return out, None
        mean_BD, log_variance_BD = out.chunk(2, dim=1)
        return mean_BD, log_variance_BD.clamp(*LOG_VARIANCE_RANGE)

    def perturbed(self, mean_BD: Tensor, log_variance_BD: Tensor | None, noise_BD: Tensor) -> Tensor:
        """Return codes for given noise ~ N(0, I): mean + sd xi, or e + xi^T A(e), on the prior's support."""
        if log_variance_BD is not None:
            mean_BD = mean_BD + (0.5 * log_variance_BD).exp() * noise_BD
        elif self.mixing is not None:
            mean_BD = mean_BD + torch.einsum("bi,bij->bj", noise_BD, self.mixing(mean_BD).float())
        return self.prior.place(mean_BD)

    def encode(self, x_BX: Tensor, noise_BD: Tensor | None = None) -> Tensor:
        """Return codes (B, D): of the given noise, or without any."""
        mean_BD, log_variance_BD = self.posterior(x_BX)
        if noise_BD is None:
            return self.prior.place(mean_BD)
        return self.perturbed(mean_BD, log_variance_BD, noise_BD)

    def decode(self, z_BD: Tensor) -> Tensor:
        """Return G(z), (B, *X) in the range of the data."""
        return self.decoder(z_BD)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Return G(Q(x)) with the noiseless code."""
        return self.decode(self.encode(x_BX))

    @property
    def random(self) -> bool:
        """Say whether Q(z|x) has noise."""
        return self.kind != "deterministic"

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return G(z) for `count` prior draws, on the network's device."""
        device = next(self.parameters()).device
        return self.decode(self.prior.draw(count, generator, device))


def conv(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    latent: int = 8,
    widths: Sequence[int] = (128, 256, 512, 1024),
    kernel_size: int = 4,
    batch_norm: bool = True,
    encoder: str = "deterministic",
    prior: str = "normal",
    prior_variance: float = 1.0,
    bounded: bool = True,
    authors_init: bool = False,
) -> AutoEncoder:
    """Build the paper's convolutional networks; the defaults are those of its MNIST experiment.

    Encoder: a convolution of stride 2 per width, each with batch normalisation and ReLU, then a dense layer. Decoder:
    a dense layer and ReLU on the smallest image (the side halved while it is even and above 8), deconvolutions of
    stride 2 with normalisation and ReLU, a last one of stride 1, a sigmoid.

    Args:
        input_shape: (C, H, W), at least 4x4.
        latent: D.
        widths: Filters of the encoder; the decoder has them in reverse.
        kernel_size: 3, 4 or 5.
        batch_norm: Normalise.
        encoder, prior, prior_variance: See `AutoEncoder`, `Prior`.
        bounded: Inputs and outputs lie in [0, 1].
        authors_init: Weights from N(0, 0.01^2), biases 0.
    """
    C, H, W = image_shape(input_shape, at_least=4)
    positive(latent=latent, **{f"widths[{i}]": n for i, n in enumerate(widths)})
    if kernel_size not in (3, 4, 5) or not widths:
        raise ValueError(f"kernel_size must be 3, 4 or 5, widths not empty; received {kernel_size}, {tuple(widths)}")
    padding, outer = (kernel_size - 1) // 2, kernel_size % 2
    down: list[nn.Module] = [Normalize([0.5] * C, [0.5] * C)] if bounded else []
    sides = [H, W]
    for fan_in, fan_out in pairwise((C, *widths)):
        down.append(nn.Conv2d(fan_in, fan_out, kernel_size, stride=2, padding=padding))
        down += [nn.BatchNorm2d(fan_out)] * batch_norm + [nn.ReLU()]
        sides = [max(1, extent(n, kernel_size, stride=2, padding=padding)) for n in sides]
    codes = latent * (2 if encoder == "gaussian" else 1)
    down += [nn.Flatten(), nn.Linear(widths[-1] * prod(sides), codes)]
    ups, (h, w) = 0, (H, W)
    while h % 2 == 0 and w % 2 == 0 and (min(h, w) > 8 or ups == 0):
        ups, h, w = ups + 1, h // 2, w // 2
    plan = [*widths[::-1], *[widths[0]] * ups][: ups + 1]
    up: list[nn.Module] = [nn.Linear(latent, plan[0] * h * w), nn.ReLU(), nn.Unflatten(1, (plan[0], h, w))]
    for fan_in, fan_out in pairwise(plan):
        up.append(nn.ConvTranspose2d(fan_in, fan_out, kernel_size, 2, padding, output_padding=outer))
        up += [nn.BatchNorm2d(fan_out)] * batch_norm + [nn.ReLU()]
    # Deviation: with an even kernel no symmetric padding keeps the size at stride 1, so the last one is a pixel larger.
    last = kernel_size + 1 - outer
    up += [nn.ConvTranspose2d(plan[-1], C, last, padding=last // 2)] + [nn.Sigmoid()] * bounded
    net = AutoEncoder(nn.Sequential(*down), nn.Sequential(*up), Prior(prior, latent, prior_variance), encoder)
    return _authors_init(net) if authors_init else net


def mlp(
    *,
    input_shape: Sequence[int] = (1, 8, 8),
    latent: int = 8,
    widths: Sequence[int] = (256, 256, 256),
    activation: str = "relu",
    encoder: str = "deterministic",
    prior: str = "normal",
    prior_variance: float = 1.0,
    bounded: bool = True,
    authors_init: bool = False,
) -> AutoEncoder:
    """Build dense networks: the authors' small configuration, 3 x 256 units, on inputs of any shape.

    Args:
        input_shape: Shape of one input.
        latent: D.
        widths: Units of the encoder's hidden layers; the decoder has them in reverse.
        activation: See `iclr18cli.models.activations`.
        encoder, prior, prior_variance, bounded, authors_init: As for `conv`.
    """
    positive(latent=latent, **{f"widths[{i}]": n for i, n in enumerate(widths)})
    size, codes = prod(input_shape), latent * (2 if encoder == "gaussian" else 1)
    down: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((size, *widths)):
        down += [nn.Linear(fan_in, fan_out), make_activation(activation)]
    up: list[nn.Module] = []
    for fan_in, fan_out in pairwise((latent, *widths[::-1])):
        up += [nn.Linear(fan_in, fan_out), make_activation(activation)]
    down.append(nn.Linear(([size, *widths])[-1], codes))
    up.append(nn.Linear(([latent, *widths[::-1]])[-1], size))
    up += [nn.Sigmoid()] * bounded + [nn.Unflatten(1, tuple(input_shape))]
    net = AutoEncoder(nn.Sequential(*down), nn.Sequential(*up), Prior(prior, latent, prior_variance), encoder)
    return _authors_init(net) if authors_init else net


def adversary(latent: int, width: int = 512) -> nn.Sequential:
    """Build D_gamma without its sigmoid: four dense layers with ReLU on codes, one output T(z)."""
    layers: list[nn.Module] = []
    for fan_in in (latent, width, width, width):
        layers += [nn.Linear(fan_in, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1), nn.Flatten(0))


def _authors_init(net: AutoEncoder) -> AutoEncoder:
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net
