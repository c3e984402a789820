"""`adr features`: G's outputs on both domains in two dimensions, runs side by side (before and after adaptation)."""

# N points · D features

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_adr.config import FeaturesConfig
from iclr18_adr.evaluate import BATCH, accuracies, adapted
from iclr18_adr.model import Adapted
from iclr18cli.data.tensors import Split, batches
from iclr18cli.models.modes import evaluating
from iclr18cli.report.plot import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iclr18cli.run.opened import OpenedRun

MARKERS = {"source": "o", "target": "x"}


def features(config: FeaturesConfig, runs: Sequence[OpenedRun]) -> dict[str, Any]:
    """Draw a panel per run, by class and domain; the picture is kept in the last run's plots."""
    figure, axes = new_figure(1, len(runs))
    panels = [axes] if len(runs) == 1 else list(axes.flat)
    told = []
    for panel, run in zip(panels, runs, strict=True):
        net = adapted(run)
        splits = {domain: run.open_split(run.config[domain], config.split, limit=config.limit).to(run.device)
                  for domain in MARKERS}  # fmt: skip
        codes = {domain: outputs(net, split) for domain, split in splits.items()}
        places = principal_components(torch.cat(list(codes.values())))
        start = 0
        for domain, split in splits.items():
            part = places[start : start + len(split)].cpu()
            start += len(split)
            panel.scatter(part[:, 0], part[:, 1], c=split.y.cpu(), cmap="tab10", marker=MARKERS[domain], s=8,
                          linewidths=0.7, alpha=0.7, label=domain)  # fmt: skip
        target = accuracies(net, splits["target"])[net.predict]
        panel.set_title(f"{run.config['critic']}: target accuracy {100 * target:.1f} %")
        told.append({"run": str(run.path), "critic": run.config["critic"], "target_accuracy": target})
    panels[0].legend(frameon=False, fontsize=7)
    return {"picture": str(runs[-1].figure("features", figure)), "n": config.limit, "runs": told}


def outputs(net: Adapted, split: Split) -> Tensor:
    """Return G's outputs, (N, D)."""
    with torch.no_grad(), evaluating(net):
        return torch.cat([net.features(net.fit(x)) for x, _ in batches(split, BATCH)])


def principal_components(f_ND: Tensor) -> Tensor:
    """Return the first two principal components, (N, 2), centred; of each the largest entry by size is positive."""
    centred = f_ND.double() - f_ND.double().mean(0)
    places = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    largest = places.gather(0, places.abs().argmax(0, keepdim=True))
    return places * largest.sign()
