"""The words and the tables of an attack's report."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from iclr18cli.attack.report import Share
from iclr18cli.attack.threat import Budget, Threat, format_range
from iclr18cli.data.tensors import Split


def statement(split: Split, attack: str, threat: Threat, budget: Budget, clean: Share, robust: Share) -> str:
    """Return the sentence a report opens with."""
    points = f"these {len(split)} {split.split} points of {split.name}"
    if threat.eps == 0:
        return f"Unattacked, the model is right on {clean.correct} of {points} ({clean.accuracy:.1%})."
    usual = f"{budget.steps} steps, {budget.restarts} starts"
    spent = {"fgsm": "one step", "noise": f"{budget.steps * budget.restarts} random points each"}.get(attack, usual)
    return (
        f"On {points}, each moved by at most {threat.eps:g} in {threat.norm} within {format_range(threat.domain)}, "
        f"robust accuracy is at most {robust.accuracy:.1%}: the attack {attack} ({spent}) left {robust.correct} right "
        f"of the {clean.correct} ({clean.accuracy:.1%}) that are right unattacked."
    )


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
    return {"norm": threat.norm, "eps": threat.eps, "domain": domain, "scope": "pointwise",
            "units": f"inputs in {format_range(threat.domain)}"}  # fmt: skip


def budget_json(budget: Budget, threat: Threat | None, batch_size: int) -> dict[str, Any]:
    """Return the budget as the report states it; without a threat the default step stays a formula."""
    step_size = budget.step_length(threat.eps) if threat else budget.step_size or "2.5 * eps / steps"
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
