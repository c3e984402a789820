"""The search for errors: stages of attacks over the points that are still right, and what became of each point.

N points of the sample · S points still unbroken · X the axes of one input
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli import device as devices
from iclr18cli.attack.parts import Parts
from iclr18cli.attack.randomness import own_randomness
from iclr18cli.attack.stages import Stage
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.tensors import Split
from iclr18cli.models.modes import evaluating

Progress = Callable[..., None]
"""Called as progress(n, robust=share): n more points are done, at most `robust` of all are still right."""


@dataclass
class Found:
    """What became of each point; all tensors are (N, …) on the CPU.

    Args:
        correct: bool, right before any attack.
        robust: bool, right before and after every attack.
        broken_by: int64, place in `stages` of the one that broke it; -1: none did.
        nearest: float64, norm of the smallest perturbation found that makes it wrong; 0 where it is wrong as it is,
            infinite where none was found.
        predicted: int64, class at the adversarial point, before that at the point itself.
        points: (N, *shape) the nearest errors found (the points themselves where none was); None: not kept.
        stages: One mapping per stage: attack, points tried, points broken, seconds.
    """

    correct: Tensor
    robust: Tensor
    broken_by: Tensor
    nearest: Tensor
    predicted: Tensor
    points: Tensor | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def before(cls, correct_N: Tensor, predicted_N: Tensor) -> Found:
        """Return what is known before the first attack."""
        nearest_N = torch.where(correct_N, torch.inf, 0.0).double()
        return cls(correct_N, correct_N.clone(), torch.full_like(predicted_N, -1), nearest_N, predicted_N.clone())


def search(
    model: nn.Module,
    split: Split,
    stages: Sequence[Stage],
    found: Found,
    *,
    threat: Threat,
    budgets: Sequence[Budget],
    seed: int,
    batch_size: int,
    targets_N: Tensor | None = None,
    parts: Parts | None = None,
    tag: str = "",
    progress: Progress | None = None,
) -> None:
    """Run the stages in order on the points that are still right and write what they find into `found`.

    Every batch draws from a generator of its own, seeded from (seed, stage, first point), so that a batch repeats
    alone: an interrupted search goes on to the same result.

    Args:
        model: Maps (B, *shape) to (B, K) logits; flags and gradients are left as they were.
        split: The points, on the model's device.
        stages, budgets: What runs, and with how much.
        found: Changed in place.
        threat: Norm, radius and domain; an infinite radius is for stages of kind "minimal" only.
        targets_N: (N,) classes to reach, on the CPU; None: any wrong class.
        parts: Where finished batches are kept.
        tag: Part of their names, different for every call of one evaluation.
        progress: See `Progress`; every stage counts every point of the split once.

    Raises:
        RuntimeError: An attack left the threat set (a bug).
        As the attacks do.
    """
    parts = parts or Parts(None)
    for number, (stage, budget) in enumerate(zip(stages, budgets, strict=True)):
        began, survivors = time.perf_counter(), found.robust.nonzero().flatten()
        _tell(progress, len(found.robust) - len(survivors), found)
        attack_points = stage.attack()
        # A minimal-norm attack may return points outside the ball; how near they are is what it reports.
        allowed = replace(threat, eps=torch.inf) if stage.spec.kind == "minimal" else threat
        with evaluating(model):
            for place, index_S in enumerate(survivors.split(batch_size) if len(survivors) else ()):
                key = f"{tag}{number:02d}-{place:05d}"
                result = parts.read(key)
                if result is None:
                    own_seed = devices.derived_seed(seed, stage.spec.name, number, int(index_S[0]))
                    on_device = index_S.to(split.x.device)
                    x_SX, y_S = split.inputs(on_device), split.y[on_device]
                    aim = {} if targets_N is None else {"targets": targets_N[index_S].to(y_S.device)}
                    generator = torch.Generator().manual_seed(own_seed)
                    with own_randomness(x_SX.device, own_seed):
                        z_SX = attack_points(model, x_SX, y_S, threat=threat, budget=budget, generator=generator, **aim)
                        distance_S = allowed.check(z_SX, x_SX)
                        with torch.no_grad():
                            predicted_S = model(z_SX).argmax(1)
                    result = {
                        "distance": distance_S.double().cpu(),
                        "predicted": predicted_S.cpu(),
                        "right": (predicted_S == y_S).cpu(),
                    }
                    if found.points is not None:
                        result["points"] = z_SX.cpu()
                    parts.write(key, result)
                within = threat.eps if stage.spec.kind == "minimal" else torch.inf
                _note(found, index_S, len(found.stages), result, within=within)
                _tell(progress, len(index_S), found)
        broken = len(survivors) - int(found.robust.sum())
        found.stages.append({"attack": stage.spec.name, "points": len(survivors), "broken": broken,
                             "seconds": time.perf_counter() - began})  # fmt: skip


def _note(found: Found, index_S: Tensor, number: int, result: dict[str, Tensor], *, within: float) -> None:
    """Enter a batch's result: a point is broken if it is misclassified at a distance that counts."""
    wrong_S, distance_S = ~result["right"], result["distance"]
    nearer_S = wrong_S & (distance_S < found.nearest[index_S])
    found.nearest[index_S[nearer_S]] = distance_S[nearer_S]
    # The tolerance of `Threat.check`: what a search inside the ball may be off by through rounding.
    broken_S = wrong_S & (distance_S <= within * (1 + 1e-6))
    changed_S = index_S[broken_S]
    found.robust[changed_S] = False
    found.broken_by[changed_S] = number
    told_S = broken_S | nearer_S
    found.predicted[index_S[told_S]] = result["predicted"][told_S]
    if found.points is not None:
        found.points[index_S[told_S]] = result["points"][told_S].to(found.points.dtype)


def _tell(progress: Progress | None, n: int, found: Found) -> None:
    if progress is not None:
        progress(n, robust=found.robust.double().mean().item())
