"""From counted points to the statement about a set, with its sentence, its limits and its fields.

N points
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iclr18cli.certify.randomized import ABSTAIN, Point, check_smoothing, max_radius
from iclr18cli.certify.result import Certificate
from iclr18cli.data.tensors import Split

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What is asked of a certification by smoothing.

    Args:
        sigma: Standard deviation of the noise, in the unit of the input.
        n0, n: Draws that select a class, and draws that count it.
        alpha: Probability that one radius is wrong; also that the statement about the set is.
        radii: Radii of the table, 2-norm.
        batch_size: Noisy inputs per forward pass; 0: from the free memory.
        seed: Seed of the noise.
        attack: Attack the smoothed classifier inside the certified balls.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    radii: Sequence[float] = RADII
    batch_size: int = 0
    seed: int = 0
    attack: bool = True

    def __post_init__(self) -> None:
        check_smoothing(sigma=self.sigma, n0=self.n0, n=self.n, alpha=self.alpha)
        if not self.radii or any(not 0 <= radius < float("inf") for radius in self.radii):
            raise ValueError(f"radii must be finite numbers >= 0; received radii={self.radii!r}")

    def joint_alpha(self, points: int) -> float:
        """Return the per-input level at which all of `points` radii hold with probability 1 - alpha/2."""
        return self.alpha / (2 * points)


def wrong_radii(points: int, alpha: float, delta: float) -> int:
    """Return q such that among N independent radii more than q are wrong with probability at most delta.

    Each is wrong with probability at most alpha, so their number is at most Binomial(N, alpha), whatever the radii.

    Example:
        >>> wrong_radii(500, 0.001, 0.001), wrong_radii(1, 0.001, 0.01)
        (4, 0)
    """
    from scipy.stats import binom

    return int(binom.isf(delta, points, alpha))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the certificates of one run share.

    Args:
        joint: Radius of every point at the level at which all hold together.
        clean: Accuracy of the base model without noise.
        attacked: Certified points that were attacked.
        wrong: Positions of those whose class an attack inside the radius changed.
        resumed: Points read from the record.
    """

    split: Split
    asked: Smoothing
    points: Sequence[Point]
    joint: Sequence[float]
    classes: int
    clean: float
    attacked: int
    wrong: Sequence[int]
    batch_size: int
    resumed: int
    record: str
    seconds: float


def certificate(facts: Facts, radius: float) -> Certificate:
    """Return the certificate for one radius.

    With probability 1 - alpha/2 at most q radii are wrong, and with probability 1 - alpha/2 none of the joint ones is:
    both together with 1 - alpha, for all radii at once. The value is the better of the two counts.
    """
    asked, n = facts.asked, len(facts.points)
    single = sum(p.correct and p.radius > radius for p in facts.points)
    joint = sum(p.correct and r > radius for p, r in zip(facts.points, facts.joint, strict=True))
    q = wrong_radii(n, asked.alpha, asked.alpha / 2)
    count = max(joint, single - q, 0)
    right = sum(p.correct for p in facts.points)
    abstained = sum(p.predicted == ABSTAIN for p in facts.points)
    limit = max_radius(asked.n, sigma=asked.sigma, alpha=asked.alpha)
    value, chance, holds = count / n, 1 / facts.classes, not facts.wrong
    noisy = sum(p.nA / p.n for p in facts.points if p.correct) / n
    where = f"{facts.split.split} points of {facts.split.name}" if facts.split.split else "points given"
    move = f"moved by at most {radius:g} in 2-norm" if radius else "unmoved"
    return Certificate(
        kind="smoothing",
        verdict="proven-prob",
        statement=(
            f"With probability at least {1 - asked.alpha:g} over the noise drawn here, the classifier smoothed with "
            f"Gaussian noise of standard deviation {asked.sigma:g} gets at least {count:,} of these {n:,} {where} "
            f"right, each {move} (proven-prob, {asked.n:,} draws per point; approximate certified accuracy in the "
            f"sense of Cohen et al.: {single:,} of {n:,}; abstained on {abstained:,})."
        ),
        not_claimed=[
            "anything about the base model, which is not smoothed",
            f"other norms: an infinity-norm radius is 2-norm radius / {facts.split.x[0].numel() ** 0.5:.4g}",
            "unseen data, and points chosen by someone who knew the seed of the noise",
            f"radii beyond {limit:.4g} = {limit / asked.sigma:.4g} sigma, the most that {asked.n:,} draws can prove",
        ],
        value=value,
        quantity="certified accuracy of the smoothed classifier",
        bound="lower",
        subject="smoothed-model",
        threat={
            "norm": "l2",
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
        confidence={
            "delta": asked.alpha,
            "form": "joint over all points and radii: the larger of the count at alpha / 2N per point and the count at "
            "alpha per point less the wrong radii a binomial allows, half of delta for each",
            "alpha_per_point": asked.alpha,
            "wrong_radii_allowed": q,
        },
        assumptions=[
            "the base classifier is deterministic and evaluated in evaluation mode, its rounding being part of it",
            "the draws are independent Gaussians, added to the raw input and not clipped; selection and estimation "
            "draws are disjoint, their numbers fixed beforehand",
        ],
        constants={
            "sigma": asked.sigma,
            "n0": asked.n0,
            "n": asked.n,
            "alpha": asked.alpha,
            "max_radius": limit,
            "approximate_certified_accuracy": single / n,
            "jointly_certified_accuracy": joint / n,
            "smoothed_accuracy": right / n,
            "abstained": abstained / n,
            "noisy_accuracy": noisy,
            "base_accuracy": facts.clean,
            "chance": chance,
        },
        solver={
            "batch_size": facts.batch_size,
            "seed": asked.seed,
            "resumed_points": facts.resumed,
            "record": facts.record,
            "attacked_points": facts.attacked,
            "contradicted_points": list(facts.wrong),
        },
        empirical=None
        if not asked.attack
        else {
            "attack": f"gradient ascent over noise draws inside the radii of {facts.attacked:,} certified points, "
            "accuracy left",
            "value": (right - len(facts.wrong)) / n,
        },
        holds=holds,
        vacuous=value <= chance,
        vacuous_above=chance,
        warnings=_warnings(facts, radius, limit=limit, noisy=noisy, abstained=abstained, vacuous=value <= chance),
        arithmetic="counts exact, Clopper-Pearson and radius in float64, noise in float32",
        seconds=facts.seconds,
    )


def _warnings(facts: Facts, radius: float, *, limit: float, noisy: float, abstained: int, vacuous: bool) -> list[str]:
    asked, found = facts.asked, []
    if radius >= limit:
        found.append(
            f"{asked.n:,} draws cannot certify more than {limit:.4g} ({limit / asked.sigma:.4g} sigma): raise --n or "
            "--sigma"
        )
    if noisy < facts.clean - 0.1:
        found.append(
            f"the base model is right on {100 * facts.clean:.1f} % of the clean and on about {100 * noisy:.1f} % of "
            f"the noisy inputs: train it with Gaussian noise (--noise {asked.sigma:g})"
        )
    if abstained == len(facts.points):
        found.append("it abstains everywhere: nothing is certified")
    elif vacuous and radius < limit:
        found.append(f"vacuous: no more than chance, 1/{facts.classes}")
    if facts.wrong:
        found.append(
            f"an attack changed the smoothed class inside the radius of {len(facts.wrong)} points (first: "
            f"{facts.wrong[0]}): a fault of this program or a model that is not deterministic"
        )
    return found
