"""The words and the tables of an attack's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from iclr18cli.attack.report import Share
from iclr18cli.attack.stages import Stage
from iclr18cli.attack.threat import Budget, Threat, format_range
from iclr18cli.data.tensors import Split


def statement(
    split: Split,
    attack: str,
    threat: Threat,
    stages: Sequence[Mapping[str, Any]],
    clean: Share,
    robust: Share,
    distances: Tensor,
    *,
    eot: int = 1,
) -> str:
    """Return the sentence a report opens with; `distances` are the norms of the changes that broke a point."""
    points = f"these {len(split)} {split.split} points of {split.name}"
    if threat.eps == 0:
        return f"Unattacked, the model is right on {clean.correct} of {points} ({clean.accuracy:.1%})."
    judged = f", judged by the mean of {eot} passes," if eot > 1 else ""
    spent = "; ".join(dict.fromkeys(f"{stage['attack']}{spelt(stage['budget'])}" for stage in stages))
    made = f"the attack {attack}" if len(stages) == 1 or attack == "autoattack" else "the attacks"
    if threat.eps == float("inf"):
        broken = len(distances)
        median = f", in the median at {distances.median().item():.4g} in {threat.norm}" if broken else ""
        return (
            f"On {points}{judged} {made} ({spent}) found an error near {broken} of the {clean.correct} points that are "
            f"right unattacked ({clean.accuracy:.1%}){median}: no larger perturbation is needed to break these."
        )
    return (
        f"On {points}{judged} each moved by at most {threat.eps:g} in {threat.norm} within "
        f"{format_range(threat.domain)}, robust accuracy is at most {robust.accuracy:.1%}: {made} ({spent}) left "
        f"{robust.correct} right of the {clean.correct} ({clean.accuracy:.1%}) that are right unattacked."
    )


def spelt(budget: Mapping[str, Any]) -> str:
    """Return the budget of a stage as it stands in a sentence: ": 40 steps, 5 starts, cross-entropy loss"."""
    words = {"steps": "steps", "restarts": "starts", "queries": "queries", "target_classes": "target classes",
             "searches": "searches"}  # fmt: skip
    said = [f"{budget[name]:,} {word}" for name, word in words.items() if name in budget]
    said += [f"{budget['loss']} loss"] if "loss" in budget else []
    return f": {', '.join(said)}" if said else ""


def quantiles(distances: Tensor) -> dict[str, float]:
    """Return mean, median and largest of the norms that broke a point; nothing where none was broken."""
    if not len(distances):
        return {}
    return {"mean": distances.mean().item(), "median": distances.median().item(), "max": distances.max().item()}


def stage_warnings(stages: Sequence[Stage], classes: int) -> list[str]:
    """Return what must be said of the attacks on a model with so many classes."""
    names = [stage.spec.name for stage in stages]
    found = []
    if "apgd-t" in names and classes < 4:
        found.append(f"The targeted DLR loss needs 4 classes; with {classes}, apgd-t climbs the margin instead.")
    return found


def not_claimed(threat: Threat) -> list[str]:
    """Return what the numbers of a report do not say."""
    return [
        "That the surviving points are robust: a stronger attack may break more; only a certificate rules it out.",
        f"Anything about norms other than {threat.norm}, larger radii, or other changes that keep the meaning.",
        "Accuracy on unseen data beyond the interval, which covers sampling error only and presumes points drawn "
        "independently from the population.",
    ]


def per_class(split: Split, correct_N: Tensor, robust_N: Tensor) -> list[dict[str, Any]]:
    """Return points, clean-correct and robust-correct points of each class."""
    y_N, table = split.y.cpu(), []
    for label, name in enumerate(split.classes):
        own_N = y_N == label
        table.append({"class": name, "n": int(own_N.sum()), "clean": int((own_N & correct_N).sum()),
                      "robust": int((own_N & robust_N).sum())})  # fmt: skip
    return table


def threat_json(threat: Threat) -> dict[str, Any]:
    """Return the threat as the report states it."""
    domain = None if threat.domain is None else list(threat.domain)
    eps = threat.eps if threat.eps < float("inf") else None  # None: the nearest error, however far
    return {"norm": threat.norm, "eps": eps, "domain": domain, "scope": "pointwise",
            "units": f"inputs in {format_range(threat.domain)}"}  # fmt: skip


def budget_json(budget: Budget, threat: Threat | None, batch_size: int) -> dict[str, Any]:
    """Return the budget as the report states it; without a threat the default step stays a formula."""
    step_size = (
        budget.step_length(threat.eps)
        if threat and threat.eps < float("inf")
        else budget.step_size or "2.5 * eps / steps"
    )
    return {"steps": budget.steps, "restarts": budget.restarts, "step_size": step_size, "loss": budget.loss,
            "batch_size": batch_size}  # fmt: skip


def sample_json(split: Split) -> dict[str, Any]:
    """Return which points were attacked."""
    return {
        "dataset": split.name,
        "split": split.split,
        "n": len(split),
        "sha256": split.digest(),
        "labels": "true labels",
    }
