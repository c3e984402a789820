"""`wae sample` and `wae interpolate`, and the grids that end a training.

N images · C channels · H height · W width · S steps · D latent dimensions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from iclr18_wae.config import InterpolateConfig, SampleConfig
from iclr18_wae.model import AutoEncoder
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError
from iclr18cli.generate import pictures
from iclr18cli.generate.evaluate import draw
from iclr18cli.models.modes import device_of, evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

GRID = 100
PAIRS, STEPS = 8, 10


def draw_grids(net: AutoEncoder, test: Split, run: Run) -> None:
    """Draw samples, reconstructions and interpolations into the plots of a training, if data are images."""
    if not _images(test.shape) or not run.world.first:
        return
    generator = torch.Generator().manual_seed(derived_seed(run.seed, "wae grid"))
    limits = test.range or (0.0, 1.0)
    with evaluating(net):
        run.figure("samples", pictures.grid(draw(net.sample, GRID, generator), limits, columns=10, title="samples"))
        x = test.take(50).inputs().to(run.device)
        with torch.no_grad():
            run.figure("reconstructions", pictures.reconstructions(x, net(x), limits))
        run.figure("interpolations", between(net, test, pairs=PAIRS, steps=STEPS, path="linear"))


def between(net: AutoEncoder, split: Split, *, pairs: int, steps: int, path: Any) -> Any:
    """Return a figure with a row per pair: image, decoded codes on the way, image."""
    device = device_of(net, torch.device("cpu"))
    x = split.take(2 * pairs).inputs().to(device)
    pairs = len(x) // 2
    with torch.no_grad(), evaluating(net):
        z = net.encode(x)
        way_RSD = pictures.interpolate(z[:pairs], z[pairs : 2 * pairs], steps, path=path)
        decoded = net.decode(
            net.prior.place(way_RSD.flatten(0, 1)) if net.prior.kind == "sphere" else way_RSD.flatten(0, 1)
        )
    rows = decoded.unflatten(0, (pairs, steps))
    rows = torch.cat([x[:pairs, None], rows, x[pairs : 2 * pairs, None]], dim=1)
    return pictures.grid(rows.flatten(0, 1), split.range or (0.0, 1.0), columns=steps + 2)


def sample(config: SampleConfig, run: OpenedRun) -> dict[str, Any]:
    """Draw from the prior and decode."""
    from iclr18_wae.evaluate import auto_encoder

    net = auto_encoder(run)
    _need_images(run)
    generator = torch.Generator().manual_seed(derived_seed(run.seed, "wae sample"))
    x = draw(net.sample, config.count, generator)
    figure = pictures.grid(x, run.card.range or (0.0, 1.0), columns=config.columns, title="samples")
    return {"count": config.count, "figure": str(run.figure("samples", figure))}


def interpolate(config: InterpolateConfig, run: OpenedRun) -> dict[str, Any]:
    """Decode the way between codes of pairs of images."""
    from iclr18_wae.evaluate import auto_encoder

    net = auto_encoder(run)
    _need_images(run)
    split = run.split(config.split, 2 * config.pairs)
    figure = between(net, split, pairs=config.pairs, steps=config.steps, path=config.path)
    return {"pairs": len(split) // 2, "path": config.path, "figure": str(run.figure("interpolations", figure))}


def _need_images(run: OpenedRun) -> None:
    if not _images(run.card.shape):
        raise UserError(f"{run.path} makes no images.", why=f"its inputs have shape {tuple(run.card.shape)}")


def _images(shape: Any) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3)
