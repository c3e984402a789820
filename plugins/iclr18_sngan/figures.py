"""Pictures: grids of samples, singular values of the critic, and what held it over the training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from iclr18_sngan.config import SampleConfig
from iclr18_sngan.mechanism import spectra
from iclr18_sngan.model import GAN
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError
from iclr18cli.generate import pictures
from iclr18cli.generate.evaluate import DRAW, draw
from iclr18cli.models.modes import device_of, evaluating

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

GRID = 100


def draw_figures(net: GAN, run: Run) -> None:
    """Draw samples and spectra into the plots of a training."""
    if not run.world.first:
        return
    generator = torch.Generator().manual_seed(derived_seed(run.seed, "sngan grid"))
    with evaluating(net):
        run.figure("samples", grid(net, GRID, 10, generator))
        run.figure("spectra", spectra_figure(net))


def grid(net: GAN, count: int, columns: int, generator: torch.Generator) -> Any:
    """Return a grid of samples; with classes, a row per class in turn."""
    limits = net.generator.limits
    if not net.classes:
        return pictures.grid(draw(net.sample, count, generator), limits, columns=columns, title="samples")
    wide = columns or math.isqrt(count - 1) + 1
    device = device_of(net, torch.device("cpu"))
    y_N = torch.arange(count) // wide % net.classes
    with torch.no_grad():
        x = torch.cat([net.generator(net.draw(len(y), generator)[0].to(device), y.to(device)) for y in y_N.split(DRAW)])
    return pictures.grid(x, limits, columns=wide, title="samples, a class per row")


def spectra_figure(net: GAN) -> Any:
    """Draw the singular values of every reshaped weight of the critic, each divided by its largest."""
    from iclr18cli.report.plot import new_figure

    figure, axes = new_figure()
    for name, values in spectra(net.critic).items():
        if len(values) > 1:
            axes.plot(torch.linspace(0, 1, len(values)), values / values[0].clamp(min=1e-300), label=name, linewidth=1)
    axes.set_xlabel("index / number of singular values")
    axes.set_ylabel("singular value / largest")
    axes.set_title("reshaped weights of the critic")
    axes.legend(fontsize=6, frameon=False)
    return figure


def sample(config: SampleConfig, run: OpenedRun) -> dict[str, Any]:
    """Draw from the prior."""
    net = gan(run)
    generator = torch.Generator().manual_seed(derived_seed(run.seed, "sngan sample"))
    with evaluating(net):
        figure = grid(net, config.count, config.columns, generator)
    return {"count": config.count, "figure": str(run.figure("samples", figure))}


def gan(run: OpenedRun) -> GAN:
    """Return the run's networks.

    Raises:
        UserError: It is no GAN of this technique.
    """
    net = run.model()
    if not isinstance(net, GAN):
        raise UserError(f"{run.path} holds no GAN.", why=f"its model is {run.card.model}",
                        fix="name a run of sngan train")  # fmt: skip
    return net
