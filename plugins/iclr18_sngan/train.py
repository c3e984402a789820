"""`sngan train`: one update of the generator, then n_dis of the critic, on every kind of critic the paper compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from iclr18_sngan.config import TrainConfig
from iclr18_sngan.figures import draw_figures
from iclr18_sngan.mechanism import observe
from iclr18_sngan.model import GAN, halvings
from iclr18_sngan.players import Players
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Order, Split
from iclr18cli.device import derived_seed
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.modes import evaluating
from iclr18cli.models.registry import build

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

OBSERVED, POINTS = 20, 64
"""How often in a training, and on how many images, the critic is looked at."""


def train(config: TrainConfig, run: Run) -> None:
    """Train, save both networks, draw the plots."""
    data = open_split(config.dataset, "train", data_dir=run.settings.data_dir, download=run.settings.download)
    if config.limit:
        data = data.take(config.limit)
    net, name, kwargs = network(config, data)
    run.prepare(net)
    data = data.to(run.device)
    fit(net, data, config, run)
    run.save_model(net, model=name, kwargs=kwargs, split=data, task="generate")
    last = observed(net, data, run.seed)
    run.record("critic", **last)
    draw_figures(net, run)
    run.finish(**last)


def fit(net: GAN, data: Split, config: TrainConfig, run: Run) -> None:
    """Train in place for all iterations, on data that lie on the run's device."""
    players = Players.of(net, config, run, bytes=data.x.dtype == torch.uint8)
    real = Order(len(data), config.batch_size, seed=run.seed, name="real", device=run.device)
    every = max(1, config.iterations // OBSERVED)
    net.train()
    for t in run.steps(config.iterations, total_name="iteration"):
        if config.schedule == "linear":
            players.slow_down(1 - t / config.iterations)
        run.log(**players.generator_step())
        for number in range(config.rounds):
            index = real.at(t * config.rounds + number)
            logged = players.critic_step(data.inputs(index), data.y[index])
        run.log(**logged)
        if t % every == 0:
            run.record("critic", **observed(net, data, run.seed))


def observed(net: GAN, data: Split, seed: int) -> dict[str, float]:
    """Look at the critic on images and samples that are the same at every call of a run."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "sngan observed"))
    with evaluating(net):
        some = data.take(torch.linspace(0, len(data) - 1, min(POINTS, len(data))).long())
        real, device = some.inputs(), data.x.device
        z, _ = net.draw(len(some), generator)
        y = some.y if net.classes else None
        with torch.no_grad():
            fake = net.generator(z.to(device), y)
        return observe(net.critic, real, fake, y, torch.rand(len(some), generator=generator).to(device))


def network(config: TrainConfig, data: Split) -> tuple[GAN, str, dict[str, Any]]:
    """Return (networks, registry name, arguments) for the data's shape.

    Raises:
        UserError: The data are no images of a declared range, or fewer than a batch.
        UsageError: The network is none of this technique, or classes are asked for where there is one.
    """
    if len(data.shape) != 3 or data.shape[0] not in (1, 3) or data.range is None:
        raise UserError(
            f"'{data.name}' holds no images.",
            why=f"inputs of shape {data.shape}, range {data.range}",
            fix="a data set of grey or RGB images in a declared range",
        )
    if any(halvings(side, floor=4, at_most=1) == 0 for side in data.shape[1:]):
        raise UserError(
            f"Images of {data.shape[1]}x{data.shape[2]} pixels cannot be halved.",
            why="both networks double and halve the image",
            fix="sides that are even and above 4: scale the images first",
        )
    if len(data) < config.batch_size:
        raise UserError(f"'{data.name}' has {len(data)} images, fewer than a batch of {config.batch_size}.",
                        fix="a smaller --batch-size, or a larger --limit")  # fmt: skip
    K = len(data.classes) if config.conditional else 0
    if K == 1:
        raise UsageError(f"--conditional needs classes, and '{data.name}' has one.", fix="leave it out")
    kwargs: dict[str, Any] = {
        "input_shape": list(data.shape), "classes": K, "latent": config.latent, "width": config.width,
        "norm": config.norm, "mode": config.mode, "power_iterations": config.power_iterations,
        "limits": list(data.range),
    }  # fmt: skip
    net = build(config.model, **kwargs)
    if not isinstance(net, GAN):
        raise UsageError(f"'{config.model}' is no GAN of this technique.", fix="--model sngan/dcgan or sngan/resnet")
    return net, config.model, kwargs
