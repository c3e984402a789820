"""The Wasserstein certificate of a classifier: how large its expected loss can get within a transport budget.

The parts are in `dual` (closed forms), `ladder` (the rungs on a sample), `distributional` (the attack inside the
certified set), `norms` and `smoothness` (the constants).
"""

# N points · B batch · X the axes of one input · K classes

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from iclr18cli.attack.memory import batch_size_for
from iclr18cli.certify.distributional import (
    Attack,
    distributional_attack,
    distributional_attacks,
    within_budget,
)
from iclr18cli.certify.dual import (
    Box,
    check_gammas,
    dual_bound,
    dual_gap,
    dual_values,
    error_bound,
    lipschitz_bound,
    penalised_ascent,
    population_margin,
    taylor_bound,
)
from iclr18cli.certify.ladder import (
    Progress,
    choose_gammas,
    clean,
    default_gammas,
    rungs,
    solve_dual,
)
from iclr18cli.certify.problem import Problem, per_example_loss, problem_of
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.smoothness import Loss as LossName
from iclr18cli.certify.smoothness import Smoothness, smoothness
from iclr18cli.certify.wording import Facts, certificate
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating

__all__ = [
    "Attack",
    "Sound",
    "batch_size_for",
    "certify",
    "check_gammas",
    "distributional_attack",
    "distributional_attacks",
    "dual_bound",
    "dual_gap",
    "dual_values",
    "error_bound",
    "lipschitz_bound",
    "penalised_ascent",
    "per_example_loss",
    "population_margin",
    "problem_of",
    "rungs",
    "taylor_bound",
    "within_budget",
]

ATTACK_NUMBERS = 8_000_000
"""Input numbers (points times coordinates) that the attack inside the certificate moves; beyond, the first points."""

THOROUGH = 100_000
"""Input numbers up to which that attack takes its full grid of penalties and bisects."""


@dataclass(frozen=True)
class Sound:
    """What the certificate is asked to state.

    Args:
        loss: "cross-entropy" (nats) or "error-probability", 1 - p_y.
        rhos: Budgets, mean squared 2-norm displacement in the squared unit of the input, at least 0.
        gammas: Penalties for S2, all above L/2; None: a grid and S1's optimum.
        box: (low, high) that the moved points stay in; None: all of R^d, the weaker assumption.
        population: State it for the distribution the points were drawn from, with probability 1 - delta.
        delta: Probability that the population statement fails, in (0, 1).
        tolerance: Gap of one example, in the unit of the loss, at which its ascent stops.
        max_steps: Ascent steps per penalty at most.
        attack_steps: Steps of the attack inside the certified set; 0: none.
        batch_size: Points per evaluation; 0: from the free memory.
        memory: Bytes the matrices of one layer may take when its norm is computed.
    """

    loss: LossName = "cross-entropy"
    rhos: Sequence[float] = (0.0001, 0.001, 0.01)
    gammas: Sequence[float] | None = None
    box: Box = None
    population: bool = False
    delta: float = 0.001
    tolerance: float = 1e-6
    max_steps: int = 100
    attack_steps: int = 20
    batch_size: int = 0
    memory: int = 2**31

    def check(self, split: Split) -> None:
        """Refuse what no certificate can be given for.

        Raises:
            ValueError: A number is out of range.
            UserError: A population statement from training points or for an unbounded loss.
        """
        if not self.rhos or any(not (0 <= rho < math.inf) for rho in self.rhos):
            raise ValueError(f"rhos must be finite numbers >= 0; received rhos={self.rhos!r}")
        if not self.population:
            return
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1); received delta={self.delta!r}")
        if split.split == "train":
            raise UserError(
                "A population statement cannot be made from training points.",
                why="the model depends on them, so they are not a fresh sample for it",
                fix="use the test split (`--split test`), or leave --population out",
            )
        if self.loss != "error-probability":
            raise UserError(
                f"A population statement needs a bounded loss; {self.loss} has none.",
                why="Hoeffding's inequality holds for losses in [0, M]",
                fix="add `--loss error-probability` (the loss 1 - p_y, in [0, 1])",
            )


def certify(
    model: nn.Module,
    split: Split,
    *,
    loss: LossName = "cross-entropy",
    rhos: Sequence[float] = (0.0001, 0.001, 0.01),
    constants: Smoothness | None = None,
    progress: Progress = lambda n: None,
    **options: object,
) -> list[Certificate]:
    """Bound the worst expected loss over all distributions within each budget of the sample by the least of S0, S1, S2.

    Certification card, section 1. The model is held in evaluation mode and given back with every flag as it was; no
    parameter gets a gradient. The same run attacks inside the certified set: `holds` is false where that beats the
    bound, which means a fault of this program or of an assumption.

    Args:
        model: Maps (B, *split.shape) to (B, K) logits; a network `smoothness` can walk.
        split: The points.
        loss, rhos: See `Sound`.
        constants: From `smoothness`, if they are known already; by default computed here.
        progress: Told after every batch how many points were evaluated; their total is not known beforehand.
        options: The other fields of `Sound`.

    Returns:
        One certificate per budget, in order.

    Raises:
        UserError: gamma <= L/2 was asked for, no layer constants are known, S2 was asked for by `gammas` on a loss that
            is not smooth, points lie outside the box, or a population statement has no ground.
        ValueError: A number is out of range.
    """
    began = time.perf_counter()
    asked = Sound(loss=loss, rhos=tuple(rhos), **options)  # type: ignore[arg-type]
    asked.check(split)
    with evaluating(model):
        known = constants or smoothness(model, split.shape, loss=loss, memory=asked.memory)
        refused = {} if known.smooth else dict.fromkeys(("S1", "S2"), known.reason)
        if asked.gammas and not known.smooth:
            raise UserError(
                "The dual bound S2 does not apply: the loss is not smooth in the input.",
                why=known.reason,
                fix="train with a smooth activation (elu, softplus, tanh), or leave gamma out: S0 needs no smoothness",
            )
        if asked.gammas:
            check_gammas(list(asked.gammas), L=known.L)
        problem = problem_of(
            model, split, loss=loss, constants=known, box=asked.box, batch_size=asked.batch_size
        )  # fmt: skip
        at = clean(problem, progress)
        gammas = list(asked.gammas or default_gammas(known.L, None if asked.population else at, rhos))
        chosen = choose_gammas(problem, at, rhos, gammas, progress) if known.smooth else []
        duals = solve_dual(
            problem, at, chosen, tolerance=asked.tolerance, max_steps=asked.max_steps, progress=progress
        )  # fmt: skip
        margins: dict[str, float] = {}
        if asked.population:
            refused["S1"] = "a population statement would need a bound of the mean squared gradient; S2 covers it"
            # One mean for S0 and one per penalty that was in the fixed grid, used or not.
            margin = population_margin(len(split), asked.delta, m=len(gammas) + 1)
            margins = {"S0": margin, "S2": margin}
        ladders = rungs(
            rhos, at, K=known.K, L=known.L, duals=duals, bound=problem.bound, margins=margins, refused=refused
        )  # fmt: skip
        attacks = _attacks(problem, asked, progress)
    seconds = time.perf_counter() - began
    facts = Facts(
        split=split,
        digest=split.digest(),
        asked_loss=loss,
        box=asked.box,
        constants=known,
        clean=float(at.loss.mean()),
        duals=duals,
        gammas=gammas,
        batch_size=problem.batch_size,
        delta=asked.delta if asked.population else None,
        margin=margins.get("S2", 0.0),
        seconds=seconds,
    )
    return [certificate(facts, ladders[rho], attack) for rho, attack in zip(rhos, attacks, strict=True)]


def _attacks(problem: Problem, asked: Sound, progress: Progress) -> Sequence[Attack | None]:
    """Attack every budget, on as many points as is affordable; the others stay where they are."""
    if not asked.attack_steps:
        return [None] * len(asked.rhos)
    n = len(problem.x)
    thorough = problem.x.numel() <= THOROUGH
    effort = {"refinements": 5} if thorough else {"refinements": 1, "factors": (1.0,), "shrink": ()}
    moved = max(1, min(n, ATTACK_NUMBERS // max(1, problem.x[0].numel())))
    found = distributional_attacks(
        problem.loss,
        problem.x[:moved],
        problem.y[:moved],
        [rho * n / moved for rho in asked.rhos],
        exact_loss=problem.exact_loss,
        steps=asked.attack_steps,
        **effort,
        box=problem.box,
        batch_size=problem.batch_size,
        progress=progress,
    )
    if moved == n:
        return found
    rest = clean(problem.take(torch.arange(moved, n, device=problem.x.device))).loss
    return [
        Attack((a.value * moved + float(rest.sum())) / n, a.points, a.mean_squared_distance * moved / n) for a in found
    ]
