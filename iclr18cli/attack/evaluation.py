"""Robust accuracy of a model under an attack, with everything needed to judge and repeat it.

N points of the sample · S points still unbroken · X the axes of one input
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18cli.attack import registry, wording
from iclr18cli.attack.masking import Clean, clean_pass
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.pgd import noise
from iclr18cli.attack.report import AttackCurve, AttackReport, Radius, Share
from iclr18cli.attack.threat import Budget, Loss, Norm, Threat
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

NOISE = Budget(steps=10, restarts=1)
"""Random points per survivor in the check against masked gradients."""

Progress = Callable[..., None]
"""Called as progress(n, robust=share): n more points are done, at most `robust` of all are still right."""


def attack_run(
    run: OpenedRun,
    *,
    attack: str = "pgd",
    norm: Norm = "linf",
    eps: float = 0.1,
    steps: int = 40,
    restarts: int = 5,
    step_size: float = 0.0,
    loss: Loss = "cross-entropy",
    limit: int = 0,
    split: str = "test",
    batch_size: int = 0,
    progress: Progress | None = None,
) -> AttackReport:
    """Attack the model of a run on its own data; the options are those of `AttackConfig`.

    Raises:
        UsageError: The run's model is no classifier, or the attack or its norm does not exist.
        UserError: See `attack_model`.
    """
    registry.find(attack, norm, _classifier(run))  # a wrong name is told before data and weights are read
    points = run.split(split, limit=limit)
    threat = Threat(norm, eps, run.card.range)
    budget = Budget(steps=steps, restarts=restarts, step_size=step_size, loss=loss)
    return attack_model(
        run.model(),
        points,
        attack=attack,
        threat=threat,
        budget=budget,
        batch_size=batch_size,
        seed=run.seed,
        progress=progress,
    )


def attack_model(
    model: nn.Module,
    split: Split,
    *,
    attack: str = "pgd",
    threat: Threat,
    budget: Budget | None = None,
    batch_size: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackReport:
    """Measure robust accuracy: each point counts only if it is right before the attack and after it.

    What the attack leaves standing is tried with a few random points as well; a point that noise breaks and a gradient
    attack did not is counted as broken and reported as a sign of masked gradients.

    Args:
        model: Maps (B, *shape) to (B, K) logits; flags and gradients are left as they were.
        split: The points; moved to the model's device.
        attack: Name of an attack, see `iclr18 attack --help`.
        threat: Norm, radius and domain; eps 0 gives clean accuracy.
        budget: Steps, restarts, step size, loss.
        batch_size: Points per batch; 0: from memory.
        seed: Seed of all randomness.
        progress: Called with the number of points done and the current robust accuracy.

    Returns:
        The report; `report.value` is an upper bound of robust accuracy on these points.

    Raises:
        UsageError: Unknown attack, or a norm it does not offer.
        UserError: Inputs outside the declared range, labels outside the classes, or what the attack cannot serve.
        RuntimeError: The attack left the threat set (a bug).
    """
    budget = budget or Budget()
    attack_points = registry.load(attack, threat.norm)
    start = time.perf_counter()
    split, batch_size = _place(model, split, batch_size)
    clean = clean_pass(model, split, threat=threat, loss=budget.loss, batch_size=batch_size)
    n, generator = len(split), torch.Generator().manual_seed(seed)
    robust_N, distance_N = clean.correct.clone(), torch.zeros(n, dtype=torch.float64)
    checks: dict[str, Any] = {"zero_gradient_share": clean.zero_gradient_share}
    warnings = list(clean.warnings)
    if threat.eps > 0:
        _tell(progress, n - int(robust_N.sum()), robust_N)
        _break(model, split, attack_points, threat, budget, generator, batch_size, robust_N, distance_N, progress)
        if attack != "noise":
            left = int(robust_N.sum())
            _break(model, split, noise, threat, NOISE, generator, batch_size, robust_N, distance_N, None)
            more = left - int(robust_N.sum())
            checks["noise"] = {"draws": NOISE.steps, "points": left, "broken": more}
            if more:
                warnings.append(
                    f"Random noise broke {more} of the {left} points that {attack} left: the attack is weak here or "
                    "the gradients are masked. They are counted as broken."
                )
    else:
        _tell(progress, n, robust_N)
    broken_N = clean.correct & ~robust_N
    found = distance_N[broken_N]
    clean_share, robust = Share(int(clean.correct.sum()), n), Share(int(robust_N.sum()), n)
    return AttackReport(
        attack=attack,
        statement=wording.statement(split, attack, threat, budget, clean_share, robust),
        not_claimed=wording.not_claimed(threat),
        clean=clean_share,
        robust=robust,
        per_class=wording.per_class(split, clean.correct, robust_N),
        threat=wording.threat_json(threat),
        budget=wording.budget_json(budget, threat, batch_size),
        sample=wording.sample_json(split),
        perturbation={"mean": found.mean().item(), "max": found.max().item()} if len(found) else {},
        survivors=robust_N.nonzero().flatten().tolist(),
        checks=checks,
        warnings=warnings,
        seed=seed,
        device=str(split.x.device),
        arithmetic=clean.arithmetic,
        seconds=time.perf_counter() - start,
    )


def curve(
    model: nn.Module,
    split: Split,
    *,
    norm: Norm,
    radii: Sequence[float],
    domain: tuple[float, float] | None,
    attack: str = "pgd",
    budget: Budget | None = None,
    batch_size: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackCurve:
    """Measure robust accuracy over a list of radii, from small to large.

    A point broken at one radius is not attacked again: what broke it lies in every larger ball too. So the curve never
    rises, and large radii cost little.

    Args:
        model, split, attack, budget, batch_size, seed: As for `attack_model`.
        norm: Norm of the perturbation.
        radii: Radii >= 0 in any order; 0 gives clean accuracy.
        domain: Declared range of the inputs; None: all of R^d.
        progress: Called with 1 after each radius.

    Raises:
        ValueError: `radii` is empty.
        As `attack_model`.
    """
    if not radii:
        raise ValueError("radii must hold at least one radius; received none")
    budget = budget or Budget()
    threats = [Threat(norm, eps, domain) for eps in sorted(set(radii))]
    attack_points = registry.load(attack, norm)
    start = time.perf_counter()
    split, batch_size = _place(model, split, batch_size)
    clean: Clean = clean_pass(model, split, threat=threats[0], loss=budget.loss, batch_size=batch_size)
    n, generator = len(split), torch.Generator().manual_seed(seed)
    robust_N, distance_N = clean.correct.clone(), torch.zeros(n, dtype=torch.float64)
    broken_at: list[float | None] = [None if right else 0.0 for right in robust_N.tolist()]
    points = []
    for threat in threats:
        if threat.eps > 0:
            before = robust_N.clone()
            _break(model, split, attack_points, threat, budget, generator, batch_size, robust_N, distance_N, None)
            for i in (before & ~robust_N).nonzero().flatten().tolist():
                broken_at[i] = threat.eps
        points.append(Radius(threat.eps, Share(int(robust_N.sum()), n)))
        _tell(progress, 1, robust_N)
    last = points[-1]
    clean_share = Share(int(clean.correct.sum()), n)
    return AttackCurve(
        attack=attack,
        statement=wording.statement(split, attack, threats[-1], budget, clean_share, last.robust),
        not_claimed=wording.not_claimed(threats[-1]),
        points=points,
        broken_at=broken_at,
        threat=wording.threat_json(threats[-1]) | {"eps": [point.eps for point in points]},
        budget=wording.budget_json(budget, None, batch_size),
        sample=wording.sample_json(split),
        clean=clean_share,
        warnings=clean.warnings,
        seed=seed,
        device=str(split.x.device),
        arithmetic=clean.arithmetic,
        seconds=time.perf_counter() - start,
    )


def _break(
    model: nn.Module,
    split: Split,
    attack_points: Callable[..., Tensor],
    threat: Threat,
    budget: Budget,
    generator: torch.Generator,
    batch_size: int,
    robust_N: Tensor,
    distance_N: Tensor,
    progress: Progress | None,
) -> None:
    """Attack the points that are robust so far; clear the flag of those that break and note how far they moved."""
    with evaluating(model):
        for index_S in robust_N.nonzero().flatten().split(batch_size):
            on_device = index_S.to(split.x.device)
            x_SX, y_S = split.inputs(on_device), split.y[on_device]
            z_SX = attack_points(model, x_SX, y_S, threat=threat, budget=budget, generator=generator)
            distance_S = threat.check(z_SX, x_SX).double().cpu()
            with torch.no_grad():
                right_S = (model(z_SX).argmax(1) == y_S).cpu()
            robust_N[index_S] = right_S
            distance_N[index_S] = distance_S
            _tell(progress, len(index_S), robust_N)


def _tell(progress: Progress | None, n: int, robust_N: Tensor) -> None:
    if progress is not None:
        progress(n, robust=robust_N.double().mean().item())


def _place(model: nn.Module, split: Split, batch_size: int) -> tuple[Split, int]:
    """Return the split on the model's device and the batch size to use."""
    anchor = next(iter([*model.parameters(), *model.buffers()]), None)
    split = split if anchor is None else split.to(anchor.device)
    return split, batch_size or batch_size_for(model, split.inputs(slice(0, 2)))


def _classifier(run: OpenedRun) -> str:
    task = run.card.task
    if task != "classify":
        raise UsageError(
            f"`iclr18 attack` works on classifiers; this run's model is for the task '{task}'.",
            why="an attack here changes one input until its predicted class is wrong",
            fix=f"iclr18 {run.technique} eval, or certify: they measure what this model is for.",
        )
    return task
