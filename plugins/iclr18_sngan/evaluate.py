"""`sngan eval`: samples in the features of a classifier, collapse, and the critic's gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclr18_sngan.config import COLLAPSED, EvalConfig
from iclr18_sngan.figures import gan
from iclr18_sngan.train import observed
from iclr18cli.generate.evaluate import run_quality

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split of its data set."""
    net = gan(run)
    split = run.split(config.split, config.limit)
    metrics: dict[str, Any] = {"dataset": split.name, "split": split.split}
    metrics |= run_quality(
        run, split, net.sample, seed=run.seed, feature_steps=config.feature_steps, inception=config.inception
    )
    if "class_entropy" in metrics:
        metrics["collapsed"] = metrics["class_entropy"] < COLLAPSED
        metrics["collapsed_below"] = COLLAPSED
    return metrics | observed(net, split.to(run.device), run.seed)
