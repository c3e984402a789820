"""`adaptive-dropout rates`: pictures and lists of the learnt rates, and what can be cut."""

# C channels · H height · W width

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18_adaptive_dropout.config import RatesConfig
from iclr18_adaptive_dropout.dropout import AdaptiveDropout
from iclr18_adaptive_dropout.evaluate import with_rates, words_of
from iclr18cli.models.measures import accuracy
from iclr18cli.report.plot import new_figure
from iclr18cli.run.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iclr18cli.run.opened import OpenedRun

BINS = 40


def rates(config: RatesConfig, run: OpenedRun) -> dict[str, Any]:
    """Describe the rates of a run; write the picture and the list."""
    net = with_rates(run)
    thetas, shape = rates_of(net), tuple(size or 1 for size in run.card.shape)
    known = words_of(run)
    told: dict[str, Any] = {"layers": [describe(theta, config.below) for theta in thetas]}
    if len(shape) == 3:
        told |= border_and_centre(thetas[0].view(shape))
    if len(known) == thetas[0].numel():
        order = thetas[0].flatten().argsort().tolist()
        told["lowest"] = [known[i] for i in order[: config.words]]
        told["highest"] = [known[i] for i in order[::-1][: config.words]]
    test = run.split("test").to(run.device)
    told["accuracy"] = accuracy(net, test)
    cut_(net, config.below)
    told["accuracy_cut"] = accuracy(net, test)
    path = run.path / "plots" / "rates.csv"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, table(thetas, known).encode())
    return {**told, "picture": str(run.figure("rates", picture(thetas, shape))), "table": str(path)}


def rates_of(net: nn.Module) -> list[Tensor]:
    """Return copies of the rates in front of each layer, on the CPU; one per unit, also where a layer shares one."""
    return [part.rates.detach().cpu().clone() for part in net.modules() if isinstance(part, AdaptiveDropout)]


def describe(theta: Tensor, below: float = 0.05) -> dict[str, float]:
    """Return the number of units, mean, spread and range of their rates, and the share of rates under `below`."""
    spread = theta.double().std(correction=0).item()
    return {"units": theta.numel(), "mean": theta.double().mean().item(), "spread": spread,
            "least": theta.min().item(), "largest": theta.max().item(),
            "below": (theta < below).double().mean().item()}  # fmt: skip


def border_and_centre(theta_CHW: Tensor) -> dict[str, float]:
    """Return the mean rates of the frame of an image, 3 pixels wide at 28x28, and of its central 8x8 pixels at 28x28.

    Other sizes in proportion, at least one pixel and two.
    """
    _, H, W = theta_CHW.shape
    frame = torch.ones(H, W, dtype=torch.bool)
    h, w = (max(1, size * 3 // 28) for size in (H, W))
    frame[h : H - h, w : W - w] = False
    tall, wide = (min(size, max(2, round(size * 8 / 28))) for size in (H, W))
    top, left = (H - tall) // 2, (W - wide) // 2
    centre = theta_CHW[:, top : top + tall, left : left + wide]
    return {"border": theta_CHW[:, frame].mean().item(), "centre": centre.mean().item()}


@torch.no_grad()
def cut_(net: nn.Module, below: float) -> None:
    """Set rates under `below` to 0 in place: such units and their outgoing weights could be deleted."""
    for part in net.modules():
        if isinstance(part, AdaptiveDropout):
            part.theta.masked_fill_(part.theta < below, 0.0)


def table(thetas: Sequence[Tensor], known: Sequence[str] = ()) -> str:
    """Return CSV: layer from 0, number of the unit in it, rate, and the word of an input of a text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", "unit", "rate", *(["word"] if known else [])])
    for layer, theta in enumerate(thetas):
        for unit, rate in enumerate(theta.flatten().tolist()):
            named = [known[unit] if layer == 0 else ""] if known else []
            writer.writerow([layer, unit, f"{rate:.6g}", *named])
    return out.getvalue()


def picture(thetas: Sequence[Tensor], shape: Sequence[int]) -> Any:
    """Draw the input rates of an image as a map, the mean over its channels, and a histogram of each layer."""
    maps = 1 if len(shape) == 3 else 0
    figure, axes = new_figure(1, maps + len(thetas), size=(3.4 * (maps + len(thetas)), 3.0))
    panels = [axes] if maps + len(thetas) == 1 else list(axes.flat)
    if maps:
        drawn = panels[0].imshow(thetas[0].view(tuple(shape)).mean(0).numpy(), vmin=0, vmax=1, cmap="viridis")
        panels[0].grid(False)
        panels[0].set_title("rates of the inputs")
        figure.colorbar(drawn, ax=panels[0], shrink=0.8)
    for layer, (panel, theta) in enumerate(zip(panels[maps:], thetas, strict=True)):
        panel.hist(theta.flatten().numpy(), bins=BINS, range=(0, 1))
        panel.set_title(f"layer {layer}, {theta.numel():,} {'inputs' if layer == 0 else 'units'}")
        panel.set_xlabel("retain rate")
    return figure
