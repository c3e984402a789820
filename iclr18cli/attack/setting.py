"""What an evaluation works on: the planned stages, this rank's points, and what is known before any attack.

N points of the sample · X the axes of one input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli import launch
from iclr18cli.attack.masking import Clean, clean_pass
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.parts import Parts
from iclr18cli.attack.randomness import Expected, own_randomness
from iclr18cli.attack.search import Found, Progress, search
from iclr18cli.attack.stages import Stage, plan
from iclr18cli.attack.targets import choose_targets
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.attack.transfer import transfer_stage
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError
from iclr18cli.models.modes import device_of

NOISE = Budget(steps=10, restarts=1)
"""Random points per survivor of a gradient attack: a point that noise breaks is broken."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How an evaluation is done, whatever the attack.

    Args:
        eot: Passes of a random model whose mean is attacked and judged (expectation over transformation); 1: none.
        target: "" untargeted, "likeliest", "least-likely", "random", or the number of a class: what a targeted attack
            aims at. Any wrong class still counts as broken; how many reached their target is told beside it.
        source: Another model: points are made on it and tried on this one (a transfer attack).
        diagnose: Look for masked gradients after the evaluation.
        batch_size: Points per batch; 0: from memory.
        seed: Seed of all randomness.
        keep_points: Return the adversarial points.
        parts: Folder for finished batches, from which an interrupted evaluation goes on; None: nothing is kept.
        progress: Called as progress(n, robust=share); every stage counts every point once.
    """

    eot: int = 1
    target: str = ""
    source: nn.Module | None = None
    diagnose: bool = True
    batch_size: int = 0
    seed: int = 0
    keep_points: bool = False
    parts: Path | None = None
    progress: Progress | None = None


@dataclass
class Setting:
    """One model, the points of this rank, and what is known before any attack."""

    model: nn.Module
    whole: Split
    split: Split
    clean: Clean
    stages: Sequence[Stage]
    budgets: Sequence[Budget]
    batch_size: int
    targets: Tensor | None
    parts: Parts
    noise: bool = False
    found: Found = field(init=False)

    def __post_init__(self) -> None:
        self.found = Found.before(self.clean.correct, self.clean.predicted)


def prepare(model: nn.Module, split: Split, attack: str, threat: Threat, budget: Any, effort: Effort) -> Setting:
    """Plan the stages, place the points of this rank, and look at them unattacked."""
    options = {} if isinstance(budget, Budget) else dict(budget or {})
    seen: dict[str, Any] = {"shape": split.shape, "bounded": threat.domain is not None}
    if effort.source is None:
        stages = plan(attack, threat.norm, options=options, **seen)
    else:
        stages = [transfer_stage(effort.source, threat.norm, options)]
    _check_radius(stages, threat)
    if effort.eot > 1:
        model = Expected(model, effort.eot)
    ranks = launch.world()
    whole = split.to(device_of(model, split.x.device))
    own = whole if ranks.size == 1 else whole.take(torch.arange(ranks.rank, len(split), ranks.size))
    loss = budget.loss if isinstance(budget, Budget) else options.get("loss", "cross-entropy")
    targets = None
    with own_randomness(own.x.device, effort.seed):
        batch_size = effort.batch_size or batch_size_for(model, whole.inputs(slice(0, 2)))
        clean = clean_pass(model, own, threat=threat, loss=loss, batch_size=batch_size)
        if effort.source is None:  # once more, now that the number of classes is known
            stages = plan(attack, threat.norm, options=options, **seen, classes=clean.classes)
        if effort.target:
            _can_aim(stages)
            targets = choose_targets(model, own, effort.target, clean.classes, batch_size=batch_size, seed=effort.seed)
    budgets = [budget if isinstance(budget, Budget) else Budget(**stage.options) for stage in stages]
    parts = Parts(None if effort.parts is None else effort.parts / f"rank-{ranks.rank}-of-{ranks.size}")
    at = Setting(model, whole, own, clean, stages, budgets, batch_size, targets, parts)
    if effort.keep_points:
        at.found.points = own.inputs().cpu().clone()
    return at


def _can_aim(stages: Sequence[Stage]) -> None:
    untargeted = [stage.spec.name for stage in stages if not stage.spec.targeted]
    if untargeted:
        raise UsageError(
            f"{', '.join(untargeted)} cannot aim at a class.", fix="--attack pgd or apgd, or leave --target out"
        )


def _check_radius(stages: Sequence[Stage], threat: Threat) -> None:
    bound = [stage.spec.name for stage in stages if stage.spec.kind == "ball"]
    if threat.eps == torch.inf and bound:
        raise UsageError(
            f"{', '.join(bound)} needs a finite eps.",
            why="it searches a ball; only minimal-norm attacks look for the nearest error",
            fix="--eps E, or --attack fab-t, deepfool, cw, fmn",
        )


def run_stages(at: Setting, threat: Threat, effort: Effort, *, tag: str = "", noise: bool = True) -> None:
    """Run the stages, and a last one of random points where all others follow gradients."""
    search(
        at.model, at.split, at.stages, at.found, threat=threat, budgets=at.budgets, seed=effort.seed,
        batch_size=at.batch_size, targets_N=at.targets, parts=at.parts, tag=tag, progress=effort.progress,
    )  # fmt: skip
    if noise and threat.eps < torch.inf and all(stage.spec.gradients for stage in at.stages):
        at.noise = True
        search(
            at.model, at.split, plan("noise", threat.norm), at.found, threat=threat, budgets=[NOISE],
            seed=effort.seed, batch_size=at.batch_size, parts=at.parts, tag=f"{tag}noise-",
        )  # fmt: skip


def told(at: Setting, found: Found) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the stages with their budgets, and what the noise broke that was added at the end (None: none was).

    The records of a curve, one round of stages per radius, are added up.
    """
    records = found.stages[:-1] if at.noise else found.stages
    rounds = [records[i :: len(at.stages)] for i in range(len(at.stages))]
    stages = [
        {
            "attack": stage.spec.name,
            "budget": {name: getattr(budget, name) for name in stage.spec.uses},
            "points": own[0]["points"] if own else 0,
            "broken": sum(record["broken"] for record in own),
            "seconds": sum(record["seconds"] for record in own),
        }
        for stage, budget, own in zip(at.stages, at.budgets, rounds, strict=True)
    ]
    if not at.noise:
        return stages, None
    last = found.stages[-1]
    return stages, {"draws": NOISE.steps, "points": last["points"], "broken": last["broken"]}


def gathered(at: Setting) -> tuple[Clean, Found]:
    """Return what all ranks found, in the order of the points."""
    ranks = launch.world()
    if ranks.size == 1:
        return at.clean, at.found
    n, found = len(at.whole), at.found
    clean = replace(
        at.clean,
        correct=of_all_ranks(at.clean.correct, at, n),
        zero_gradient=of_all_ranks(at.clean.zero_gradient, at, n),
        predicted=of_all_ranks(at.clean.predicted, at, n),
        warnings=list(dict.fromkeys(w for told in ranks.gather(list(at.clean.warnings)) for w in told)),
    )
    stages = [
        {"attack": of_rank[0]["attack"], **{k: sum(r[k] for r in of_rank) for k in ("points", "broken")},
         "seconds": max(r["seconds"] for r in of_rank)}
        for of_rank in zip(*ranks.gather(found.stages), strict=True)
    ]  # fmt: skip
    return clean, Found(
        correct=of_all_ranks(found.correct, at, n),
        robust=of_all_ranks(found.robust, at, n),
        broken_by=of_all_ranks(found.broken_by, at, n),
        nearest=of_all_ranks(found.nearest, at, n),
        predicted=of_all_ranks(found.predicted, at, n),
        points=None if found.points is None else of_all_ranks(found.points, at, n),
        stages=stages,
    )


def of_all_ranks(own: Tensor, at: Setting, n: int) -> Tensor:
    """Return a tensor with an entry per point, put together from the shares of all ranks."""
    ranks = launch.world()
    if ranks.size == 1:
        return own
    whole = own.new_empty((n, *own.shape[1:]))
    for rank, share in enumerate(ranks.gather(own)):
        whole[rank :: ranks.size] = share
    return whole
