"""From certified radii to the statement about a set, with its sentence, its limits and its fields.

N points · C classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from iclr18cli.certify.norms import METHODS
from iclr18cli.certify.pair_constants import PairConstants
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.smoothness import InputNorm
from iclr18cli.data.tensors import Split

WORDS = {"l2": "2-norm", "linf": "infinity-norm"}


@dataclass(frozen=True, kw_only=True)
class Broken:
    """What the attacks inside the certified set did.

    Args:
        tried: Points attacked, the first ones of the sample.
        within: Radius -> points right unattacked that an attack within it made wrong, among those tried.
        certified: Positions of points that went wrong nearer than their own certified radius: none, if all is sound.
        steps: Steps of each attack.
    """

    tried: int
    within: dict[float, int]
    certified: Sequence[int]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the certificates of one run share; `radii` holds every point's certified radius, 0 where it is wrong."""

    split: Split
    norm: InputNorm
    constants: PairConstants
    radii: Sequence[float]
    right: int
    slack: float
    broken: Broken | None
    batch_size: int
    record: str
    seconds: float

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.constants.between)


def certificate(facts: Facts, radius: float) -> Certificate:
    """Return the certificate for one radius: the share of all points, wrong ones included, that hold out within it."""
    n, constants, broken = len(facts.radii), facts.constants, facts.broken
    count = sum(own > radius for own in facts.radii)
    value, chance = count / n, 1 / facts.classes
    middle, holds = median(facts.radii), broken is None or not broken.certified
    where = f"{facts.split.split} points of {facts.split.name}" if facts.split.split else "points given"
    move = f"each moved by at most {radius:.4g} in {WORDS[facts.norm]}" if radius else "unmoved"
    largest = float(constants.between.max())
    return Certificate(
        kind="lipschitz",
        verdict="proven",
        statement=(
            f"Of these {n:,} {where}, {move}, the model gets at least {count:,} ({100 * value:.4g} %) right (proven: "
            f"differences of logits change by at most {largest:.4g} per unit of input; median certified radius "
            f"{middle:.3g})."
        ),
        not_claimed=_not_claimed(facts),
        value=value,
        quantity="certified accuracy",
        bound="lower",
        threat={
            "norm": facts.norm,
            "radius": radius,
            "average": False,
            "domain": "R^d",
            "units": "unit of the model's input",
        },
        sample={
            "dataset": facts.split.name,
            "split": facts.split.split,
            "n": n,
            "sha256": facts.split.digest(),
            "labels": "as given",
        },
        assumptions=[
            "the model is evaluated in evaluation mode, in real arithmetic with its stored weights",
            "every layer's norm is an upper bound, computed in float64 and rounded up; none comes from power iteration",
            "activations change no faster than their largest slope; residual branches add",
        ],
        constants={
            "K": constants.K,
            "K_pair_max": largest,
            "slack": facts.slack,
            "median_radius": middle,
            "mean_radius": fmean(facts.radii),
            "max_radius": max(facts.radii),
            "clean_accuracy": facts.right / n,
            "chance": chance,
        },
        solver={
            "route": constants.route,
            "K_pair_max_by_route": dict(constants.routes),
            "norms": [{"layer": path, "norm": norm.value, "method": norm.method} for path, norm in constants.norms],
            "methods": {norm.method: METHODS[norm.method] for _, norm in constants.norms},
            "folded": list(constants.folded),
            "batch_size": facts.batch_size,
            "record": facts.record,
            "attacked_points": broken.tried if broken else 0,
            "contradicted_points": list(broken.certified) if broken else [],
        },
        empirical=None
        if broken is None
        else {
            "attack": f"gradient ascent of {broken.steps} steps within the radius, on {broken.tried:,} points, and "
            "within each one's own certified radius: accuracy left",
            "value": (facts.right - broken.within[radius]) / n,
        },
        holds=holds,
        vacuous=value <= chance,
        vacuous_above=chance,
        warnings=_warnings(facts, radius, vacuous=value <= chance),
        arithmetic="float64; margins lessened by the slack, constants raised by 1e-12 per layer and 1e-9 where folded",
        seconds=facts.seconds,
    )


def _not_claimed(facts: Facts) -> list[str]:
    d, norm = facts.split.x[0].numel(), facts.norm
    other = (
        f"other norms: in the infinity-norm only the radius divided by {math.sqrt(d):.4g}, the root of the dimension"
        if norm == "l2"
        else "other norms: in the 2-norm only the same radius"
    )
    return [
        other,
        "that the points not counted can be broken: the bound is the same everywhere and is loose",
        "unseen data",
        "rounding of the arithmetic in which the model is used",
    ]


def _warnings(facts: Facts, radius: float, *, vacuous: bool) -> list[str]:
    found, broken = [], facts.broken
    if facts.constants.routes:
        said = ", ".join(f"{name}: {value:.4g}" for name, value in facts.constants.routes.items())
        found.append(f"largest pair constant by both routes: {said}; the smaller counts, pair by pair")
    if vacuous:
        found.append(
            f"vacuous: no more than chance, 1/{facts.classes}. A net trained without control of its layer norms has a "
            "huge constant: cap them (wrm train --spectral-cap)"
        )
    if broken is not None and broken.certified:
        found.append(
            f"an attack changed the class of {len(broken.certified)} points inside their certified radius (first: "
            f"{broken.certified[0]}): a fault of this program or of an assumption"
        )
    return found
