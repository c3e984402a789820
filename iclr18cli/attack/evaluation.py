"""Robust accuracy of a model under attacks, with everything needed to judge and repeat it.

N points of the sample · X the axes of one input
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli import launch
from iclr18cli.attack import wording
from iclr18cli.attack.diagnosis import Diagnosis, diagnose
from iclr18cli.attack.masking import Clean
from iclr18cli.attack.randomness import own_randomness
from iclr18cli.attack.report import AttackCurve, AttackReport, Share
from iclr18cli.attack.search import Found
from iclr18cli.attack.setting import Effort, Setting, gathered, of_all_ranks, prepare, run_stages, told
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.tensors import Split


@dataclass(frozen=True)
class Evaluated:
    """A report with what it was made from.

    Args:
        report: Attack or curve.
        found: What became of each point; with several ranks, of all points on every rank.
        split: The points, on the model's device.
        resumed: Batches that an earlier, interrupted evaluation had finished.
    """

    report: AttackReport | AttackCurve
    found: Found
    split: Split
    resumed: int = 0


def attack_model(
    model: nn.Module,
    split: Split,
    *,
    attack: str = "pgd",
    threat: Threat,
    budget: Budget | Mapping[str, Any] | None = None,
    **effort: Any,
) -> AttackReport:
    """Measure robust accuracy: each point counts only if it is right before the attacks and after them.

    What a gradient attack leaves standing is tried with a few random points as well, and a diagnosis looks for signs
    that gradients are no guide to this model.

    Args:
        model: Maps (B, *shape) to (B, K) logits; flags and gradients are left as they were.
        split: The points; moved to the model's device.
        attack: Name of an attack, several separated by commas (each on what the last left), or "autoattack".
        threat: Norm, radius and domain; eps 0 gives clean accuracy, an infinite eps goes with minimal-norm attacks.
        budget: A `Budget` for every stage, or the fields of one that differ from each attack's own standard.
        effort: The fields of `Effort`.

    Returns:
        The report; `report.value` is an upper bound of robust accuracy on these points.

    Raises:
        UsageError: Unknown attack, or a norm or a model it does not serve.
        UserError: Inputs outside the declared range, labels outside the classes, or what the attack cannot serve.
        RuntimeError: The attack left the threat set (a bug).
    """
    report = evaluate_model(model, split, attack=attack, threat=threat, budget=budget, effort=Effort(**effort)).report
    assert isinstance(report, AttackReport)
    return report


def evaluate_model(
    model: nn.Module,
    split: Split,
    *,
    attack: str = "pgd",
    threat: Threat,
    budget: Budget | Mapping[str, Any] | None = None,
    effort: Effort | None = None,
) -> Evaluated:
    """Do what `attack_model` does and return the report with every point's fate; arguments as there."""
    effort, start = effort or Effort(), time.perf_counter()
    at = prepare(model, split, attack, threat, budget, effort)
    if threat.eps > 0:
        run_stages(at, threat, effort)
    elif effort.progress is not None:
        effort.progress(len(at.split) * len(at.stages), robust=at.found.robust.double().mean().item())
    clean, found = gathered(at)
    n, judged = len(at.whole), found.robust
    stages, noise = told(at, found)
    warnings = [*clean.warnings, *wording.stage_warnings(at.stages, clean.classes)]
    if noise and noise["broken"]:
        warnings.append(
            f"Random noise broke {noise['broken']} of the {noise['points']} points that {attack} left: the attack is "
            "weak here or the gradients are masked. They are counted as broken."
        )
    checks: dict[str, Any] = {"zero_gradient_share": clean.zero_gradient_share}
    checks |= {"noise": noise} if noise else {}
    diagnosis = _diagnosis(at, threat, clean, judged, effort)
    if diagnosis is not None:
        warnings += [] if diagnosis.believable else [diagnosis.sentence]
        warnings += _count_broken(found, diagnosis, threat)
    broken_N = clean.correct & ~judged
    distances = found.nearest[broken_N]
    reached = None
    if at.targets is not None:
        aims = of_all_ranks(at.targets, at, n)
        reached = {"aim": effort.target, "reached": int((broken_N & (found.predicted == aims)).sum()), "n": n}
    shares = Share(int(clean.correct.sum()), n), Share(int(judged.sum()), n)
    at.parts.remove()
    report = AttackReport(
        attack=attack if effort.source is None else "transfer",
        statement=wording.statement(at.whole, attack, threat, stages, *shares, distances, eot=effort.eot),
        not_claimed=wording.not_claimed(threat),
        clean=shares[0],
        robust=shares[1],
        per_class=wording.per_class(at.whole, clean.correct, judged),
        threat=wording.threat_json(threat),
        budget=wording.budget_json(at.budgets[0], threat, at.batch_size) | {"eot": effort.eot},
        stages=stages,
        sample=wording.sample_json(at.whole),
        perturbation=wording.quantiles(distances),
        targeted=reached,
        survivors=judged.nonzero().flatten().tolist(),
        checks=checks,
        diagnosis=None if diagnosis is None else diagnosis.to_json(),
        diagnosis_text="" if diagnosis is None else diagnosis.to_text(),
        warnings=warnings,
        seed=effort.seed,
        ranks=launch.world().size,
        device=str(at.split.x.device),
        arithmetic=clean.arithmetic,
        seconds=time.perf_counter() - start,
    )
    return Evaluated(report, found, at.whole, at.parts.replayed)


def _diagnosis(at: Setting, threat: Threat, clean: Clean, robust_N: Tensor, effort: Effort) -> Diagnosis | None:
    """Look for masked gradients, on the first rank only."""
    if not effort.diagnose or not 0 < threat.eps < torch.inf or launch.world().rank:
        return None
    with own_randomness(at.whole.x.device, effort.seed):
        climbed = zip(at.stages, at.budgets, strict=True)
        return diagnose(
            at.model, at.whole, threat=threat, budget=at.budgets[0], robust_N=robust_N, clean=clean, seed=effort.seed,
            batch_size=at.batch_size,
            losses=[budget.loss if "loss" in stage.spec.uses else "margin" for stage, budget in climbed],
        )  # fmt: skip


def _count_broken(found: Found, diagnosis: Diagnosis, threat: Threat) -> list[str]:
    """Count what the diagnosis broke within eps as broken, under the name "diagnosis", and say so."""
    index = torch.tensor(list(diagnosis.broken), dtype=torch.int64)
    index = index[found.robust[index]] if len(index) else index
    if not len(index):
        return []
    found.stages.append({"attack": "diagnosis", "points": 0, "broken": len(index), "seconds": 0.0})
    found.robust[index], found.broken_by[index] = False, len(found.stages) - 1
    found.nearest[index] = found.nearest[index].clamp(max=threat.eps)
    return [f"The diagnosis broke {len(index)} more points within eps; they are counted as broken."]
