"""How far a smoothed mean can shift within a Wasserstein budget: its interval, its bound, and the words for both.

M noise draws
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from iclr18cli.certify.randomized import lower_confidence, upper_confidence
from iclr18cli.certify.result import Certificate
from iclr18cli.data.tensors import Split
from iclr18cli.report.text import outward

Measure = Literal["error", "error-probability"]

WORDS = {
    "error": "the expected error rate of the model under Gaussian noise",
    "error-probability": "the expected probability of a wrong class (1 - p_y) of the model under Gaussian noise",
}


@dataclass(frozen=True)
class Mean:
    """A mean of independent values in [0, 1] and one-sided confidence bounds of its expectation, each at its delta."""

    value: float
    lower: float
    upper: float


def shift_bound(distance: float, sigma: float) -> float:
    """Return the total variation between N(0, sigma^2 I) and its copy `distance` away: what h_s can change by.

    Example:
        >>> round(shift_bound(0.5, 0.5), 3)
        0.383
    """
    return math.erf(distance / (2 * math.sqrt(2) * sigma))


def mean_bounds(values_M: Tensor, measure: Measure, delta: float) -> Mean:
    """Bound the expectation of a mean, from each side with error probability delta.

    Clopper-Pearson for 0 and 1; otherwise the better of Hoeffding and of the empirical Bernstein bound of Maurer and
    Pontil (2009, theorem 4), each at delta/2.

    Args:
        values_M: (M,) independent values in [0, 1], float64, of one distribution.
        measure: "error": they are 0 and 1.
        delta: Error probability per side.
    """
    n, value = len(values_M), float(values_M.mean())
    if measure == "error":
        k = int(values_M.sum())
        return Mean(value, lower_confidence(k, n, delta), upper_confidence(k, n, delta))
    log = math.log(2 / delta)
    margin = math.sqrt(log / (2 * n))
    if n > 1:
        half = math.log(4 / delta)
        margin = min(margin, math.sqrt(2 * float(values_M.var()) * half / n) + 7 * half / (3 * (n - 1)))
    return Mean(value, max(0.0, value - margin), min(1.0, value + margin))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the certificates of one run share."""

    split: Split
    sigma: float
    measure: Measure
    clean: Mean
    base: float
    classes: int
    draws: int
    delta: float
    population: bool
    batch_size: int
    seed: int
    seconds: float


def certificate(facts: Facts, rho: float, found: tuple[float, Mean] | None) -> Certificate:
    """Return the certificate for one budget; `holds` compares the attack's own lower confidence bound with it."""
    shift = shift_bound(math.sqrt(rho), facts.sigma)
    value = min(1.0, facts.clean.upper + shift)
    threshold = 1 - 1 / facts.classes if facts.measure == "error" else 0.5
    holds = found is None or found[1].lower <= value
    points = f"{len(facts.split):,} {facts.split.split} points of {facts.split.name}"
    who = f"for the distribution these {points} come from" if facts.population else f"for these {points}"
    warnings = []
    if value >= threshold:
        warnings.append(f"vacuous: from {threshold:.3g} on the bound says no more than chance; try a larger --sigma")
    if 1 - facts.clean.value < facts.base - 0.1:
        warnings.append(
            f"the base model is right on {100 * facts.base:.1f} % of the clean inputs and errs on "
            f"{100 * facts.clean.value:.1f} % of the noisy ones: train it with Gaussian noise (--noise {facts.sigma:g})"
        )
    if not holds:
        warnings.append("points moved within the budget beat the bound: a fault of this program or of an assumption")
    return Certificate(
        kind="wasserstein",
        verdict="proven-prob",
        statement=(
            f"With probability at least {1 - facts.delta:g} over the draws, {who}, moved by at most {rho:g} squared "
            f"2-norm on average with labels kept, {WORDS[facts.measure]} of standard deviation {facts.sigma:g} is at "
            f"most {_up(value)} (proven-prob, {_up(facts.clean.upper)} unmoved + erf {_up(shift)})."
        ),
        not_claimed=[
            "anything about the model without noise",
            "the error of the majority vote over noise, which can be up to twice as large",
            "per-point robustness: one point may move by the square root of n rho",
            "other norms than the 2-norm, and changed labels",
            "distributions other than the one the points come from" if facts.population else "unseen data",
        ],
        value=value,
        quantity="expected error rate under noise" if facts.measure == "error" else "expected 1 - p_y under noise",
        subject="smoothed-model",
        threat={
            "norm": "l2",
            "radius": rho,
            "radius_is": "mean squared 2-norm displacement (rho)",
            "average": True,
            "domain": "R^d",
            "labels": "kept",
            "units": "squared unit of the model's input",
        },
        sample={
            "dataset": facts.split.name,
            "split": facts.split.split,
            "n": len(facts.split),
            "sha256": facts.split.digest(),
            "labels": "as given",
        },
        confidence={"delta": facts.delta, "form": "joint over all budgets"},
        assumptions=[
            "the model is deterministic and evaluated in evaluation mode, its rounding being part of it",
            "the noise is independent and Gaussian, added to the raw input and not clipped",
            *(["the points are independent draws and the model was fixed before them"] if facts.population else []),
        ],
        constants={
            "sigma": facts.sigma,
            "distance": math.sqrt(rho),
            "shift": shift,
            "clean": facts.clean.value,
            "clean_upper": facts.clean.upper,
            "draws": facts.draws,
            "base_accuracy": facts.base,
        },
        solver={
            "batch_size": facts.batch_size,
            "seed": facts.seed,
            "interval": "Clopper-Pearson" if facts.measure == "error" else "Hoeffding or empirical Bernstein",
        },
        empirical=None
        if found is None
        else {
            "attack": "penalised ascent over noise draws, budget shared over the points",
            "value": found[1].value,
            "lower": found[1].lower,
            "mean_squared_distance": found[0],
        },
        holds=holds,
        vacuous=value >= threshold,
        vacuous_above=threshold,
        warnings=warnings,
        arithmetic="means and intervals in float64, noise in float32",
        seconds=facts.seconds,
    )


def _up(value: float) -> str:
    return outward(value, "upper")
