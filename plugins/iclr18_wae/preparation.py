"""What stands around the loop of `wae train`: network, draws, schedule, encoder pre-training, checks of the options."""

# B batch · D latent dimensions · X the axes of one input

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18_wae import algorithm
from iclr18_wae.config import TrainConfig
from iclr18_wae.model import AutoEncoder
from iclr18cli.certify.capping import Capped, capped_layers
from iclr18cli.errors import UsageError
from iclr18cli.models.registry import build

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.loop import Run

PRETRAINED = 0.1
"""Moment loss at which pre-training stops, in the authors' code."""

PRETRAIN_BATCH = 1000
LOOK_EVERY = 20


class Draws:
    """The random numbers of a step, alike on every rank and shared out as the batch is."""

    def __init__(self, net: AutoEncoder, config: TrainConfig, run: Run):
        self.net, self.config, self.run = net, config, run
        self._generators = {name: run.generator(name, run.device) for name in ("prior", "code noise", "pixel noise")}

    def prior(self, count: int = 0) -> Tensor:
        """Return this rank's share of `count` (a batch, if 0) draws from P_Z."""
        generator = self._generators["prior"]
        return self.run.share(self.net.prior.draw(count or self.config.batch_size, generator, self.run.device))

    def noise(self, count: int = 0) -> Tensor:
        """Return as many draws from N(0, I_D) for a random encoder."""
        if not self.net.random:
            return torch.empty(0, device=self.run.device)
        shape = (count or self.config.batch_size, self.config.latent)
        return self.run.share(torch.randn(shape, generator=self._generators["code noise"], device=self.run.device))

    def blurred(self, x_BX: Tensor) -> Tensor:
        """Return inputs with truncated normal noise on the pixels, as the authors' encoders see them."""
        if not self.config.input_noise:
            return x_BX
        shape = (self.config.batch_size, *x_BX.shape[1:])
        noise = torch.empty(shape, device=x_BX.device)
        nn.init.trunc_normal_(noise, a=-2, b=2, generator=self._generators["pixel noise"])
        return x_BX + self.config.input_noise * self.run.share(noise)


def pretrain(net: AutoEncoder, data: Split, config: TrainConfig, run: Run, draws: Draws) -> None:
    """Fit the encoder alone until codes have about the prior's mean and covariance."""
    parts = [*net.encoder.parameters(), *(net.mixing.parameters() if net.mixing is not None else ())]
    optimizer = torch.optim.Adam(parts, lr=config.learning_rate, betas=(config.beta1, 0.999))
    run.track(pretraining=optimizer)
    generator, placed = run.generator("pretraining"), data.to(run.device)
    count = min(PRETRAIN_BATCH, len(data))
    for number in run.steps(config.pretrain_steps, total_name="pre-training"):
        index = run.share(torch.randperm(len(data), generator=generator)[:count].to(run.device))
        code = net.encode(placed.inputs(index), draws.noise(count) if net.random else None)
        loss = algorithm.moment_loss(code, draws.prior(count))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(moment_loss=loss.detach())
        if number % LOOK_EVERY == LOOK_EVERY - 1:
            mean_loss = float(run.total(loss.detach())) / run.world.size
            if mean_loss < PRETRAINED:
                run.stop()


def schedule(config: TrainConfig, epoch: int) -> float:
    """Return the factor of the step size in an epoch, numbered from 1."""
    match config.schedule:
        case "constant":
            return 1.0
        case "manual":  # each drop counts from the first value
            return 1.0 if epoch < 30 else 1 / 2 if epoch < 50 else 1 / 10 if epoch < 100 else 1 / 100
        case "smooth":
            return 0.01 ** ((epoch - 1) / config.epochs)


def network(config: TrainConfig, data: Split) -> tuple[AutoEncoder, str, dict[str, Any]]:
    """Return (network, registry name, arguments) for the data's shape.

    Raises:
        UsageError: The network does not take images, or these options.
    """
    image = len(data.shape) == 3 and min(data.shape[1:]) >= 4
    name = ("wae/conv" if image else "wae/mlp") if config.model == "auto" else config.model
    kwargs: dict[str, Any] = {
        "input_shape": list(data.shape), "latent": config.latent, "widths": list(config.widths),
        "encoder": config.encoder or ("gaussian" if config.method == "vae" else "deterministic"),
        "prior": config.prior, "prior_variance": config.prior_variance,
        "bounded": data.range == (0.0, 1.0), "authors_init": config.authors_init,
    }  # fmt: skip
    if name == "wae/conv":
        kwargs |= {"kernel_size": config.kernel_size, "batch_norm": config.batch_norm}
    net = build(name, **kwargs)
    if not isinstance(net, AutoEncoder):
        raise UsageError(f"'{name}' is no auto-encoder of this technique.", fix="--model wae/conv, or wae/mlp")
    return net, name, kwargs


def layers_to_cap(net: AutoEncoder, data: Split) -> Capped:
    """Return the layers of both halves that a cap applies to."""
    return [*capped_layers(net.encoder, data.shape), *capped_layers(net.decoder, (net.prior.D,))]


def check(config: TrainConfig, ranks: int = 1) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UsageError: As said.
    """
    if config.method == "vae" and config.encoder not in (None, "gaussian"):
        raise UsageError(f"A vae has a gaussian encoder, not {config.encoder}.", fix="leave --encoder out")
    if config.encoder == "gaussian" or config.method == "vae":
        _needs_normal(config, "a gaussian encoder")
    if config.p_trick:
        _needs_normal(config, "--p-trick")
    if config.spectral_cap is not None and config.model != "wae/mlp":
        raise UsageError("--spectral-cap caps dense layers.", fix="--model wae/mlp")
    if config.batch_size < 2 * ranks:
        raise UsageError(
            f"A batch of {config.batch_size} leaves {ranks} processes fewer than two codes each.",
            why="the unbiased MMD of one code does not exist",
            fix=f"--batch-size {2 * ranks} or more",
        )


def _needs_normal(config: TrainConfig, who: str) -> None:
    if config.prior != "normal":
        raise UsageError(f"{who} needs --prior normal.", why=f"received --prior {config.prior}")
