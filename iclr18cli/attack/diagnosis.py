"""Is a robust accuracy to be believed, or do masked gradients stand behind it? Looked at after every evaluation.

The checks of Carlini et al. (2019), Athalye et al. (2018, section 3.1) and Tramer et al. (2020), and the automatic
flags of AutoAttack (Croce and Hein 2020), on a sample of the points. What speaks against a robust accuracy is only what
makes it too high, so the checks look at the points that survived.

A failed check is told. It takes the belief away (`Check.veto`) where

- the gradient of the loss that was climbed is zero at more than 5 % of the survivors, or there is none,
- the outputs are probabilities, random, or made by autograd inside the model,
- an attack that knows less (one step, noise, a black box) gains more than 0.2 points of accuracy where gradients do not
  lead even when told the class, or more of the same attack gains more than 2 points: lower ends of 95 % intervals,
- an attack without bound leaves more than 5 % of the points,
- the loss does not rise along the gradient, or finite differences do not agree with it at all.

A larger ball that looks safer, and losses of a size that chance explains, are told only.

N points of the sample · S points looked at
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack import diagnosis_checks as attacks
from iclr18cli.attack import diagnosis_gradients as gradients
from iclr18cli.attack.diagnosis_probe import Check, Probe
from iclr18cli.attack.masking import Clean
from iclr18cli.attack.randomness import own_randomness
from iclr18cli.attack.search import Progress
from iclr18cli.attack.threat import Budget, Loss, Threat
from iclr18cli.data.tensors import Split
from iclr18cli.models.modes import evaluating

CHECKS: tuple[Callable[[Probe], Check], ...] = (
    gradients.zero_gradient,
    gradients.logits,
    gradients.same_outputs,
    gradients.no_autograd_inside,
    gradients.uphill,
    gradients.finite_differences,
    attacks.larger_radius,
    attacks.unbounded,
    attacks.single_step,
    attacks.random_noise,
    attacks.black_box,
    attacks.more_effort,
)
"""In this order: later ones use what earlier ones tell, see `Probe.state`."""


@dataclass(frozen=True)
class Diagnosis:
    """What the checks found, and whether the robust accuracy is to be believed.

    Args:
        checks: Every check, passed or not.
        believable: False: the robust accuracy may well be far too high.
        sentence: The finding in plain English.
        broken: Positions in the sample of survivors that a check broke within eps, ascending: errors like any other.
    """

    checks: Sequence[Check]
    believable: bool
    sentence: str
    broken: Sequence[int] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {"believable": self.believable, "sentence": self.sentence, "broken": list(self.broken),
                "checks": [check.to_json() for check in self.checks]}  # fmt: skip

    def to_text(self) -> str:
        """Render the sentence and a table of the checks."""
        from iclr18cli.console import labelled, show_metrics, table

        if all(check.passed is None for check in self.checks):
            return "\n".join(labelled("masking", [self.sentence]))
        rows = [
            [check.name, "-" if check.passed is None else check.passed, show_metrics(check.figures)]
            for check in self.checks
        ]
        return "\n".join([*labelled("masking", [self.sentence]), "", table(["check", "ok", "figures"], rows), ""])


def diagnose(
    model: nn.Module,
    split: Split,
    *,
    threat: Threat,
    budget: Budget,
    robust_N: Tensor,
    clean: Clean,
    seed: int,
    batch_size: int,
    points: int = 128,
    losses: Sequence[Loss] | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look for masked gradients behind the result of an evaluation.

    On at most `points` clean-correct points, half of them survivors where there are as many, spread over the sample.
    Costs about as much as 400 gradient steps on 64 points.

    Args:
        model: Maps (B, *shape) to (B, K) logits; flags and gradients are left as they were.
        split: The points, on the model's device.
        threat: Norm, finite radius > 0 and domain.
        budget: Of the first attack; its loss is what the checks climb.
        robust_N: (N,) bool on the CPU, right before and after the attacks.
        clean: What is known of the unattacked points.
        seed: Seed of all randomness; global generators are left alone.
        batch_size: Points per batch.
        points: Points looked at, at least 2.
        losses: What all attacks of the evaluation climbed; None: the budget's loss alone. With another beside
            cross-entropy the checks climb the margin, as a saturated cross-entropy has then deceived nobody.
        progress: Called as progress(1, check=name) after every check.

    Raises:
        ValueError: The radius is 0 or infinite, or fewer than 2 points.
    """
    if not 0 < threat.eps < torch.inf:
        raise ValueError(f"eps must be > 0 and finite; received {threat.eps!r}")
    if points < 2:
        raise ValueError(f"points must be >= 2; received {points}")
    if budget.loss == "cross-entropy" and set(losses or ()) - {"cross-entropy"}:
        budget = replace(budget, loss="margin")
    robust_N = robust_N.cpu()
    survivors = int(robust_N.sum())
    if survivors == 0:
        said = "No point survived: masked gradients have nothing left to hide."
        names = [check.__name__.replace("_", " ") for check in CHECKS]
        return Diagnosis([Check(name, None, {}, "Nothing is left to judge.") for name in names], True, said)
    index_S = _sample(clean.correct.cpu(), robust_N, points)
    own = index_S.to(split.x.device)
    with torch.inference_mode(False), evaluating(model), own_randomness(split.x.device, seed):
        probe = Probe(
            model=model, x=split.inputs(own).detach(), y=split.y[own], alive=robust_N[index_S], index=index_S,
            survivors=survivors, n=len(robust_N), threat=threat, budget=budget,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        found = []
        for check in CHECKS:
            found.append(check(probe))
            if progress is not None:
                progress(1, check=found[-1].name)
    broken_S = torch.stack([check.broken for check in found if check.broken is not None]).any(0) & probe.alive
    return Diagnosis(found, not any(check.veto for check in found), _said(found), index_S[broken_S].tolist())


def _sample(correct_N: Tensor, robust_N: Tensor, points: int) -> Tensor:
    """Return positions of survivors and of broken points, as many of each as there are, ascending."""
    groups = [(robust_N & correct_N).nonzero().flatten(), (correct_N & ~robust_N).nonzero().flatten()]
    half = points // 2
    counts = [min(len(own), max(half, points - len(other))) for own, other in (groups, groups[::-1])]
    return torch.cat([_spread(own, count) for own, count in zip(groups, counts, strict=True)]).sort().values


def _spread(index: Tensor, count: int) -> Tensor:
    """Return `count` entries, evenly spaced: a sample sorted by class gives points of all classes."""
    return index if count >= len(index) else index[torch.arange(count) * len(index) // max(count, 1)]


def _said(found: Sequence[Check]) -> str:
    vetoes, failed = [c for c in found if c.veto], [c for c in found if c.passed is False]
    judged = sum(check.passed is not None for check in found)
    if vetoes:
        more = f"; and {len(vetoes) - 3} more" if len(vetoes) > 3 else ""
        return f"Do not believe this robust accuracy: {_joined(vetoes[:3])}{more}."
    if failed:
        return f"{len(failed)} of {judged} checks for masked gradients failed, none by much: {_joined(failed)}."
    return f"No sign of masked gradients in {judged} checks (that is no proof)."


def _joined(checks: Sequence[Check]) -> str:
    return "; ".join(check.sentence[0].lower() + check.sentence[1:].rstrip(".") for check in checks)
