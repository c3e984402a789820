"""Robust accuracy over a list of radii."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from iclr18cli import launch
from iclr18cli.attack import wording
from iclr18cli.attack.evaluation import Evaluated
from iclr18cli.attack.report import AttackCurve, Radius, Share
from iclr18cli.attack.setting import Effort, gathered, prepare, run_stages, told
from iclr18cli.attack.threat import Budget, Norm, Threat
from iclr18cli.data.tensors import Split


def curve(
    model: nn.Module,
    split: Split,
    *,
    norm: Norm,
    radii: Sequence[float],
    domain: tuple[float, float] | None,
    attack: str = "pgd",
    budget: Budget | Mapping[str, Any] | None = None,
    **effort: Any,
) -> AttackCurve:
    """Measure robust accuracy over a list of radii, from small to large.

    A point broken at one radius is not attacked again: what broke it lies in every larger ball too. So the curve never
    rises, and large radii cost little. A minimal-norm attack runs once, for the whole curve.

    Args:
        model, split, attack, budget: As for `attack_model`.
        norm: Norm of the perturbation.
        radii: Radii >= 0 in any order; 0 gives clean accuracy.
        domain: Declared range of the inputs; None: all of R^d.
        effort: The fields of `Effort`; there is no diagnosis of a curve.

    Raises:
        ValueError: `radii` is empty.
        As `attack_model`.
    """
    report = evaluate_curve(
        model, split, norm=norm, radii=radii, domain=domain, attack=attack, budget=budget, effort=Effort(**effort)
    ).report
    assert isinstance(report, AttackCurve)
    return report


def evaluate_curve(
    model: nn.Module,
    split: Split,
    *,
    norm: Norm,
    radii: Sequence[float],
    domain: tuple[float, float] | None,
    attack: str = "pgd",
    budget: Budget | Mapping[str, Any] | None = None,
    effort: Effort | None = None,
) -> Evaluated:
    """Do what `curve` does and return the curve with every point's fate; arguments as there."""
    if not radii:
        raise ValueError("radii must hold at least one radius; received none")
    effort, start = effort or Effort(), time.perf_counter()
    threats = [Threat(norm, eps, domain) for eps in sorted(set(radii))]
    at = prepare(model, split, attack, threats[-1], budget, effort)
    once = all(stage.spec.kind == "minimal" for stage in at.stages)
    for number, threat in enumerate(threats):
        if once and number == 0 and threats[-1].eps > 0:
            run_stages(at, replace(threats[-1], eps=torch.inf), effort, tag="all-", noise=False)
            at.found.robust = at.clean.correct.clone()
        elif not once and threat.eps > 0:
            run_stages(at, threat, effort, tag=f"{number:03d}-", noise=False)
        elif effort.progress is not None:
            effort.progress(len(at.split) * len(at.stages), robust=at.found.robust.double().mean().item())
    clean, found = gathered(at)
    n, nearest = len(at.whole), found.nearest
    points = [Radius(t.eps, Share(int((nearest > t.eps * (1 + 1e-6)).sum()), n)) for t in threats]
    radius_N = [next((t.eps for t in threats if d <= t.eps * (1 + 1e-6)), None) for d in nearest.tolist()]
    broken = nearest[clean.correct & ~found.robust]
    clean_share = Share(int(clean.correct.sum()), n)
    stages, _ = told(at, found)
    at.parts.remove()
    report = AttackCurve(
        attack=attack if effort.source is None else "transfer",
        statement=wording.statement(
            at.whole, attack, threats[-1], stages, clean_share, points[-1].robust, broken, eot=effort.eot
        ),
        not_claimed=wording.not_claimed(threats[-1]),
        points=points,
        broken_at=radius_N,
        threat=wording.threat_json(threats[-1]) | {"eps": [point.eps for point in points]},
        budget=wording.budget_json(at.budgets[0], None, at.batch_size) | {"eot": effort.eot},
        stages=stages,
        sample=wording.sample_json(at.whole),
        clean=clean_share,
        warnings=[*clean.warnings, *wording.stage_warnings(at.stages, clean.classes)],
        seed=effort.seed,
        ranks=launch.world().size,
        device=str(at.split.x.device),
        arithmetic=clean.arithmetic,
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    return Evaluated(report, found, at.whole, at.parts.replayed)
