"""`adr eval`: accuracy of both classifiers on both domains, and how much dropout draws of C differ there.

B batch · N examples · K classes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_adr.algorithm import sampling, symmetric_kl
from iclr18_adr.config import EvalConfig
from iclr18_adr.model import Adapted
from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

BATCH = 500


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on its target and on its source."""
    net = adapted(run)
    heads = ("c", "cprime") if config.classifier == "both" else (config.classifier,)
    metrics: dict[str, Any] = {"critic": run.config["critic"], "predicts_with": net.predict}
    for domain in ("target", "source"):
        split = run.open_split(run.config[domain], config.split, limit=config.limit).to(run.device)
        predicted = predictions(net, split)
        metrics[f"{domain}_dataset"], metrics[f"{domain}_n"] = split.name, len(split)
        for head in heads:
            confusion = confusion_matrix(split.y, predicted[head], len(split.classes))
            metrics[f"{domain}_{head}"] = confusion.diagonal().sum().item() / len(split)
            if domain == "target":
                metrics |= by_class(confusion, split.classes, head)
        metrics[f"{domain}_sensitivity"] = mean_sensitivity(net, split, draws=config.draws)
    return {"accuracy": metrics[f"target_{heads[0] if net.predict not in heads else net.predict}"], **metrics}


def adapted(run: OpenedRun) -> Adapted:
    """Return the run's network.

    Raises:
        UserError: Another technique made the run.
    """
    net = run.model()
    if not isinstance(net, Adapted) or "source" not in run.config:
        raise UserError(f"{run.path} has no source and target.", why=f"'{run.technique}' made it",
                        fix="name a run of adr train")  # fmt: skip
    return net


def predictions(net: Adapted, split: Split) -> dict[str, Tensor]:
    """Return the classes (N,) that C and C' predict, from one pass of G."""
    found: dict[str, list[Tensor]] = {"c": [], "cprime": []}
    with torch.no_grad(), evaluating(net):
        for x, _ in batches(split, BATCH):
            f = net.features(net.fit(x))
            found["c"].append(net.classifier(f).argmax(1))
            found["cprime"].append(net.second(f).argmax(1))
    return {head: torch.cat(parts) for head, parts in found.items()}


def accuracies(net: Adapted, split: Split) -> dict[str, float]:
    """Return the accuracy of each classifier, in [0, 1]."""
    return {head: (y == split.y).double().mean().item() for head, y in predictions(net, split).items()}


def confusion_matrix(y_N: Tensor, predicted_N: Tensor, classes: int) -> Tensor:
    """Return counts (K, K): rows are true classes, columns predicted ones."""
    return torch.bincount(y_N * classes + predicted_N, minlength=classes**2).view(classes, classes)


def by_class(confusion: Tensor, names: tuple[str, ...], head: str) -> dict[str, Any]:
    """Return the accuracy of each class that has points, their mean, and the matrix."""
    counts = confusion.sum(1)
    each = (confusion.diagonal() / counts.clamp(min=1)).tolist()
    present = {name: value for name, value, count in zip(names, each, counts.tolist(), strict=True) if count}
    return {
        f"mean_class_{head}": sum(present.values()) / len(present),
        f"by_class_{head}": present,
        f"confusion_{head}": confusion.tolist(),
    }


def mean_sensitivity(net: Adapted, split: Split, *, draws: int) -> float:
    """Return the mean d(p1, p2) over points and pairs of dropout draws of C, in nats; the rest in evaluation mode."""
    total = torch.zeros((), dtype=torch.float64, device=split.x.device)
    with torch.no_grad(), evaluating(net), sampling(net.classifier) as C:
        for x, _ in batches(split, BATCH):
            f = net.features(net.fit(x))
            for _ in range(draws):
                total += symmetric_kl(C(f), C(f)).double().sum()
    return total.item() / (draws * len(split))
