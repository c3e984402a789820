"""What an attack found, in the one form that every attack reports in. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from iclr18cli.certify.result import software

SCHEMA = "iclr18.attack/1"
CURVE_SCHEMA = "iclr18.attack-curve/1"

DELTA = 0.05
"""Error probability of every binomial interval."""


def clopper_pearson(k: int, n: int, delta: float = DELTA) -> tuple[float, float]:
    """Return the exact two-sided interval for a share of which k of n independent points showed it.

    Clopper and Pearson (1934): covers the true share with probability at least 1 - delta.

    Args:
        k: Successes, 0 to n.
        n: Points, at least 1.
        delta: Error probability, in (0, 1).

    Example:
        >>> low, high = clopper_pearson(0, 10)
        >>> low, round(high, 4)      # 1 - 0.025 ** (1 / 10)
        (0.0, 0.3085)
    """
    if not 0 <= k <= n or n < 1 or not 0 < delta < 1:
        raise ValueError(f"need 0 <= k <= n, n >= 1, 0 < delta < 1; received k={k!r}, n={n!r}, delta={delta!r}")
    from scipy.special import betaincinv

    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, delta / 2))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - delta / 2))
    return low, high


@dataclass(frozen=True)
class Share:
    """Correct points among n, with the exact 95 % interval for the population they were drawn from."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        """Return correct / n."""
        return self.correct / self.n

    def to_json(self) -> dict[str, Any]:
        """Return accuracy, counts and interval."""
        interval = list(clopper_pearson(self.correct, self.n))
        return {"accuracy": self.accuracy, "correct": self.correct, "n": self.n, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """The result of attacks on one model: an upper bound of robust accuracy, and its limits.

    Args:
        attack: Name of the attack or attacks, as asked for.
        statement: One English sentence with the numbers filled in.
        clean, robust: Shares of correct points before and after; a point wrong before counts as broken.
        per_class: One mapping per class: name, n, clean, robust (correct points).
        stages: One mapping per attack, in order: attack, budget, points it was tried on, points it broke, seconds.
        perturbation: Mean, median and largest norm of the changes that broke a point; empty if none was broken.
        targeted: aim, and how many points ended in the class aimed at; None for an untargeted evaluation.
        survivors: Positions of the unbroken points in the evaluated sample, ascending.
        checks: zero_gradient_share, and what the noise baseline broke in addition.
        diagnosis: Checks for masked gradients with their figures, and whether the number is to be believed; None where
            it was not asked for.
        files: Kind -> path of what was written beside the report.
    """

    attack: str
    statement: str
    not_claimed: Sequence[str]
    clean: Share
    robust: Share
    per_class: Sequence[Mapping[str, Any]]
    threat: Mapping[str, Any]
    budget: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]
    sample: Mapping[str, Any]
    perturbation: Mapping[str, float]
    targeted: Mapping[str, Any] | None = None
    survivors: Sequence[int]
    checks: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[str, Any] | None = None
    diagnosis_text: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    seed: int = 0
    ranks: int = 1
    device: str = "cpu"
    arithmetic: str = "float32"
    seconds: float = 0.0
    kind: str = "attack"
    verdict: str = "attack"
    subject: str = "model"

    @property
    def value(self) -> float:
        """Return robust accuracy under this attack: an upper bound of the true one on these points."""
        return self.robust.accuracy

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping with its schema name and software versions."""
        own = asdict(self)
        del own["diagnosis_text"]
        return {
            "schema": SCHEMA,
            **own,
            "clean": self.clean.to_json(),
            "robust": self.robust.to_json(),
            "value": self.value,
            "quantity": "robust accuracy",
            "bound": "upper",
            "confidence": {"delta": DELTA, "method": "Clopper-Pearson", "scope": "per share, sampling error only"},
            "points_per_second": self.sample["n"] / self.seconds if self.seconds else None,
            "software": software(),
        }

    def to_text(self) -> str:
        """Render the report for a person: the sentence, what is not claimed, the numbers, the warnings."""
        from iclr18cli.console import bold, labelled, table

        low, high = clopper_pearson(self.robust.correct, self.robust.n)
        rows = [[c["class"], c["n"], c["clean"], c["robust"]] for c in self.per_class]
        lines = [
            bold(self.statement),
            *labelled("not claimed", self.not_claimed),
            f"  attack       robust accuracy <= {100 * self.value:.2f} %   (clean {100 * self.clean.accuracy:.2f} %; "
            f"95 % interval {100 * low:.2f} to {100 * high:.2f} %)",
        ]
        if self.perturbation:
            p = self.perturbation
            lines.append(
                f"  moved        {p['median']:.4g} in the median, {p['mean']:.4g} on average, {p['max']:.4g} at most "
                f"({self.threat['norm']})"
            )
        if self.targeted:
            lines.append(
                f"  targeted     {self.targeted['reached']} of {self.targeted['n']} reached the class aimed at"
            )
        if len(self.stages) > 1:
            own = [[s["attack"], s["points"], s["broken"], round(s["seconds"], 2)] for s in self.stages]
            lines += ["", table(["attack", "tried on", "broke", "seconds"], own), ""]
        lines += [self.diagnosis_text] if self.diagnosis_text else []
        lines += labelled("warning", self.warnings)
        return "\n".join([*lines, "", table(["class", "n", "clean", "robust"], rows)])


@dataclass(frozen=True)
class Radius:
    """Robust accuracy at one radius of a curve."""

    eps: float
    robust: Share

    @property
    def error(self) -> float:
        """Return the share of wrong or broken points."""
        return 1 - self.robust.accuracy


@dataclass(frozen=True, kw_only=True)
class AttackCurve:
    """Robust accuracy over a list of radii; it never rises, because a broken point stays broken in every larger ball.

    Args:
        points: One entry per radius, ascending.
        broken_at: For each point of the sample the smallest listed radius it was broken at; 0 if it is wrong
            unattacked, None if it never was.
    """

    attack: str
    statement: str
    not_claimed: Sequence[str]
    points: Sequence[Radius]
    broken_at: Sequence[float | None]
    threat: Mapping[str, Any]
    budget: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]
    sample: Mapping[str, Any]
    clean: Share
    files: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    seed: int = 0
    ranks: int = 1
    device: str = "cpu"
    arithmetic: str = "float32"
    seconds: float = 0.0
    kind: str = "attack-curve"
    verdict: str = "attack"
    subject: str = "model"

    @property
    def value(self) -> float:
        """Return robust accuracy at the largest radius."""
        return self.points[-1].robust.accuracy

    def to_text(self) -> str:
        """Render the curve for a person: the sentence, what is not claimed, one line per radius, the warnings."""
        from iclr18cli.console import bold, labelled, table

        rows = []
        for point in self.points:
            low, high = clopper_pearson(point.robust.correct, point.robust.n)
            rows.append([point.eps, point.robust.correct, f"{100 * point.robust.accuracy:.2f} %",
                         f"{100 * low:.2f} to {100 * high:.2f}"])  # fmt: skip
        lines = [bold(self.statement), *labelled("not claimed", self.not_claimed)]
        lines += labelled("warning", self.warnings)
        heads = [f"eps ({self.threat['norm']})", "robust", "accuracy <= (attack)", "95 % interval"]
        return "\n".join([*lines, "", table(heads, rows)])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping with its schema name and software versions."""
        return {
            "schema": CURVE_SCHEMA,
            **asdict(self),
            "clean": self.clean.to_json(),
            "points": [{"eps": point.eps, **point.robust.to_json()} for point in self.points],
            "confidence": {"delta": DELTA, "method": "Clopper-Pearson", "scope": "per share, sampling error only"},
            "software": software(),
        }
