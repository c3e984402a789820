"""Put the numbers of a Wasserstein certificate into its sentence, its limits and its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iclr18cli.certify.distributional import Attack
from iclr18cli.certify.dual import SLACK, Box, error_bound
from iclr18cli.certify.ladder import Dual, Ladder
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.smoothness import Smoothness
from iclr18cli.data.tensors import Split

QUANTITY = {"cross-entropy": "expected cross-entropy (nats)", "error-probability": "expected 1 - p_y"}
WORDS = {
    "cross-entropy": "expected cross-entropy",
    "error-probability": "expected probability of a wrong class (1 - p_y)",
}
VACUOUS_ABOVE = {"cross-entropy": math.log(2), "error-probability": 0.5}
"""From here on the implied bound of the error rate is 1."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the certificates of one run share; `delta` is None for the sample form."""

    split: Split
    digest: str
    asked_loss: str
    box: Box
    constants: Smoothness
    clean: float
    duals: Mapping[float, Dual]
    gammas: Sequence[float]
    batch_size: int
    delta: float | None
    margin: float
    seconds: float


def up(value: float, digits: int = 3) -> str:
    """Write a number with a few significant digits, rounded up so that the text is no stronger than the number.

    Example:
        >>> up(0.16501), up(2.0), up(0.0)
        ('0.166', '2', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    text = f"{value:.{digits}g}"
    return text if float(text) >= value else f"{float(text) + unit:.{digits}g}"


def certificate(facts: Facts, ladder: Ladder, attack: Attack | None) -> Certificate:
    """Return the certificate for one budget.

    The value is the smallest valid rung. `holds` compares the attack on the sample with the bound for the sample,
    that is without the margin of a population statement.
    """
    loss, n, constants = facts.asked_loss, len(facts.split), facts.constants
    value, threshold = ladder.value, VACUOUS_ABOVE[loss]
    vacuous = value >= threshold
    clipped = loss == "error-probability" and value >= 1
    holds = attack is None or attack.value <= value - (0.0 if clipped else facts.margin)
    dual = facts.duals.get(ladder.gamma) if ladder.gamma is not None else None
    uses_dual = ladder.best == "S2"

    numbers: dict[str, float] = {"K": constants.K, "clean": facts.clean, "slack": SLACK}
    numbers |= {"error_bound": error_bound(value, loss=loss)}
    if constants.smooth:
        numbers["L"] = constants.L
    if uses_dual and ladder.gamma is not None:
        numbers["gamma"] = ladder.gamma
    if facts.delta is not None:
        numbers["margin"] = facts.margin
    return Certificate(
        kind="wasserstein",
        verdict="proven" if facts.delta is None else "proven-prob",
        statement=_sentence(facts, ladder, vacuous),
        not_claimed=_not_claimed(facts),
        value=value,
        quantity=QUANTITY[loss],
        threat={
            "norm": "l2",
            "radius": ladder.rho,
            "radius_is": "mean squared 2-norm displacement (rho)",
            "average": True,
            "domain": "R^d" if facts.box is None else list(facts.box),
            "labels": "kept",
            "units": "squared unit of the model's input",
        },
        sample={
            "dataset": facts.split.name,
            "split": facts.split.split,
            "n": n,
            "sha256": facts.digest,
            "labels": "as given",
        },
        confidence=None if facts.delta is None else {"delta": facts.delta, "form": "joint over all budgets"},
        assumptions=_assumptions(facts),
        constants=numbers,
        solver={
            "rung": ladder.best,
            "rungs": dict(ladder.values),
            "refused": dict(ladder.refused),
            "gammas_tried": list(facts.gammas),
            "steps": dual.steps if dual else 0,
            "max_residual": dual.max_residual if dual else None,
            "gap_mean": dual.gap_mean if dual else None,
            "batch_size": facts.batch_size,
            "norms": [{"layer": name, "norm": norm.value, "method": norm.method} for name, norm in constants.norms],
        },
        empirical=None
        if attack is None
        else {
            "attack": "penalised ascent, budget shared over the points",
            "value": attack.value,
            "mean_squared_distance": attack.mean_squared_distance,
        },
        holds=holds,
        vacuous=vacuous,
        vacuous_above=threshold,
        warnings=_warnings(facts, ladder, vacuous, holds),
        arithmetic="float64, rounding covered by a relative slack of 1e-9",
        seconds=facts.seconds,
    )


def _sentence(facts: Facts, ladder: Ladder, vacuous: bool) -> str:
    points = f"{len(facts.split):,} {facts.split.split} points of {facts.split.name}"
    domain = "" if facts.box is None else f" inside [{facts.box[0]:g}, {facts.box[1]:g}]"
    move = f"moved by at most {ladder.rho:g} squared 2-norm on average{domain} with labels kept"
    made = [ladder.best]
    if ladder.best == "S0":
        made.append(f"K = {facts.constants.K:.3g}")
    else:
        made.append(f"L = {facts.constants.L:.3g}")
    if ladder.best == "S2" and ladder.gamma is not None:
        made.append(f"gamma = {ladder.gamma:.3g}")
    bound = f"{WORDS[facts.asked_loss]} of the model is at most {up(ladder.value)}"
    error = (
        ""
        if vacuous
        else f", hence its error rate at most {up(100 * error_bound(ladder.value, loss=facts.asked_loss))} %"
    )
    if facts.delta is None:
        return f"For these {points}, {move}, {bound}{error} (proven, {', '.join(made)})."
    return (
        f"With probability at least {1 - facts.delta:g} over the draw of these {points}, for the distribution they "
        f"come from, {move}, {bound}{error} (proven-prob, {', '.join(made)})."
    )


def _not_claimed(facts: Facts) -> list[str]:
    limits = ["per-point robustness: one point may move by the square root of n rho", "other norms than the 2-norm"]
    limits.append("unseen data" if facts.delta is None else "distributions other than the one the points come from")
    limits.append("changed labels")
    if facts.box is not None:
        limits.append("inputs outside the stated box")
    return limits


def _assumptions(facts: Facts) -> list[str]:
    held = ["the model is evaluated in evaluation mode, in real arithmetic with its stored weights"]
    held.append("operator norms are upper bounds from Gram matrices, reshaped kernels or Fourier blocks, in float64")
    if facts.constants.smooth:
        held.append("every activation has a Lipschitz continuous derivative")
    if facts.delta is not None:
        held.append("the points are independent draws and the model was fixed before them")
        held.append(f"union bound over {len(facts.gammas)} penalties fixed beforehand and S0")
    return held


def _warnings(facts: Facts, ladder: Ladder, vacuous: bool, holds: bool) -> list[str]:
    found = [f"{name} does not apply: {reason}" for name, reason in ladder.refused.items()]
    if vacuous:
        found.append(
            f"vacuous: from {VACUOUS_ABOVE[facts.asked_loss]:.3g} on the bound does not limit the error rate; train "
            "with capped layer norms (--spectral-cap) for smaller constants"
        )
    if not holds:
        found.append("an attack inside the certified set beats the bound: a fault of this program or of an assumption")
    return found
