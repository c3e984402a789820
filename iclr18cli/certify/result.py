"""The one form of every certificate: a sentence, its verdict, its limits, and the numbers behind it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Literal

SCHEMA = "iclr18.certificate/1"

Verdict = Literal["proven", "proven-prob", "measured", "estimate", "attack"]
"""proven: deterministic for the stated sample · proven-prob: with probability 1 - delta, all constants known ·
measured: a check of what was computed, counted or sent · estimate: could be wrong in the unsafe direction ·
attack: an upper bound of robust accuracy."""


def software() -> dict[str, str]:
    """Return the versions a certificate was made with."""
    return {name: version(name) for name in ("iclr18", "torch", "numpy")} | {"python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A statement with a number, its verdict and its limits (certification card, section 7).

    Args:
        kind: wasserstein, smoothing, lipschitz, ibp, crown, technique.
        verdict: One of the verdict words; never better than the weakest assumption.
        statement: One English sentence with the numbers filled in.
        value: The certified number; `quantity` says what it is, `bound` from which side it holds.
        subject: "model" or "smoothed-model", or another thing that is certified ("policy", "optimiser").
        threat: norm, radius, average or pointwise, domain, units.
        sample: dataset, split, n, sha256 of the evaluated points, labels.
        confidence: delta, per-point or joint; None for a deterministic statement.
        empirical: The strongest attack found inside the certified set: {"attack": name, "value": number}.
        holds: False when the attack contradicts the bound or a measured check failed: exit code 4.
        vacuous: The number says no more than chance or the trivial bound; `vacuous_above` gives the threshold.
    """

    kind: str
    verdict: Verdict
    statement: str
    not_claimed: Sequence[str]
    value: float
    quantity: str
    bound: Literal["upper", "lower", "equal"] = "upper"
    subject: str = "model"
    threat: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    confidence: Mapping[str, Any] | None = None
    assumptions: Sequence[str] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    solver: Mapping[str, Any] = field(default_factory=dict)
    empirical: Mapping[str, Any] | None = None
    holds: bool = True
    vacuous: bool = False
    vacuous_above: float | None = None
    warnings: Sequence[str] = ()
    arithmetic: str = "float64"
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as a JSON-ready mapping with its schema name and software versions."""
        return {"schema": SCHEMA, **asdict(self), "software": software()}
