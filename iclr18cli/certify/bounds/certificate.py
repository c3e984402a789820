"""The certificate by bounds of the outputs: how many points keep their right class wherever they move in a ball.

N points · B batch · X the axes of one input · K classes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from iclr18cli.attack.pgd import pgd
from iclr18cli.attack.report import clopper_pearson
from iclr18cli.attack.threat import Budget, Norm, Threat, format_range
from iclr18cli.certify.bounds import SLACK, Intermediate, Method, margins
from iclr18cli.certify.problem import check_labels, exact_copy
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.shared_points import alike, in_parts, slices
from iclr18cli.data.tensors import Split
from iclr18cli.device import derived_seed
from iclr18cli.models.modes import device_of, evaluating

CHUNK, ATTACK_CHUNK = 256, 125
"""Points bounded between two reports of progress, and points attacked at a time."""

ATTACKED = 500
"""Points that the attack inside the certified set tries, the first ones."""

BUDGET = Budget(steps=20, restarts=2, loss="margin")

NAMES = {"ibp": "interval bounds", "crown": "linear relaxation, CROWN"}
WORDS = {"linf": "infinity-norm", "l2": "2-norm", "l1": "1-norm"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a certification by bounds.

    Args:
        method: "ibp" or "crown".
        norm, eps: Norm and radii of the balls, in the unit of the input, each >= 0 and finite.
        box: Adversaries keep to the inputs' declared range.
        intermediate: See `iclr18cli.certify.bounds.margins`.
        attack: Attack inside the certified set.
        batch_size: Points at once; 0: from the free memory.
        seed: Seed of the attack.
    """

    method: Method = "crown"
    norm: Norm = "linf"
    eps: Sequence[float] = (0.1,)
    box: bool = True
    intermediate: Intermediate = "auto"
    attack: bool = True
    batch_size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.eps or any(not 0 <= eps < float("inf") for eps in self.eps):
            raise ValueError(f"eps must be finite numbers >= 0; received eps={self.eps!r}")


@dataclass(frozen=True)
class Verified:
    """What one radius gave; tensors are (N,) bool on the CPU, `least` the least margin, (N,) float64.

    `broken` holds the right points, among the `tried` first ones, that an attack inside the ball made wrong.
    """

    eps: float
    right: Tensor
    least: Tensor
    broken: Tensor
    tried: int
    classes: int
    seconds: float

    @property
    def certified(self) -> Tensor:
        """Return which points keep their right class everywhere in the ball."""
        return self.right & (self.least > 0)

    @property
    def contradicted(self) -> list[int]:
        """Return the positions of certified points that the attack made wrong: none, if all is sound."""
        return (self.certified & self.broken).nonzero().flatten().tolist()


def certify_bounds(
    model: nn.Module,
    split: Split,
    asked: Asked,
    *,
    progress: Callable[[int], object] | None = None,
    record: Callable[[float], Path | None] = lambda eps: None,
) -> list[Certificate]:
    """Bound from below the share of points that a model gets right however each is moved in a ball.

    Deterministic, of the model itself. The same run attacks inside the balls; `holds` is false where that makes a
    certified point wrong.

    Args:
        model: Maps (N, *shape) to (N, K) logits; layers as `iclr18cli.certify.bounds.network` knows them. Held in
            evaluation mode, flags and gradients left as they were.
        split: The points.
        asked: What to certify.
        progress: Told how many points were bounded.
        record: Names the TSV of a radius for the margin of every point; None: no file.

    Returns:
        One certificate per radius, in order.

    Raises:
        UserError: A layer has no bounds, inputs lie outside the range, or labels outside the classes.
    """
    tell = progress or (lambda n: None)
    device = device_of(model, torch.device("cpu"))
    device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
    placed = split.to(device)
    found = []
    with evaluating(model):
        double = exact_copy(model).to(device)
        for eps in asked.eps:
            threat = Threat(asked.norm, eps, split.range if asked.box else None)
            result = _verified(double, placed, threat, asked, tell)
            path = record(eps)
            alike(partial(_write, path, split, result))
            found.append(_certificate(split, threat, asked, result, path))
    return found


def _verified(double: nn.Module, split: Split, threat: Threat, asked: Asked, tell: Callable[[int], object]) -> Verified:
    began, n = time.perf_counter(), len(split)
    with torch.no_grad():
        classes = int(double(split.inputs(slice(0, 1)).double()).shape[-1])
    check_labels(split, classes)

    def bounded(part: slice) -> tuple[Tensor, Tensor]:
        x, y = split.inputs(part), split.y[part]
        threat.admit(x)
        x = threat.clip(x.double())
        with torch.no_grad():
            right_B = (double(x).argmax(1) == y).cpu()
        bounds_BK = margins(
            double, x, y, threat=threat, method=asked.method, intermediate=asked.intermediate,
            batch_size=asked.batch_size,
        )  # fmt: skip
        tell(len(y))
        return right_B, bounds_BK.scatter(1, y[:, None], torch.inf).amin(1).cpu()

    right, least = zip(*in_parts(slices(n, CHUNK), bounded), strict=True)
    right_N, tried = torch.cat(right), min(n, ATTACKED) if asked.attack and threat.eps > 0 else 0
    broken = torch.zeros(n, dtype=torch.bool)
    if tried:

        def attacked(index_S: Tensor) -> Tensor:
            at = index_S.to(split.x.device)
            x, y = threat.clip(split.inputs(at).double()), split.y[at]
            # Of a part's own, so that it does not matter which rank attacks it.
            generator = torch.Generator().manual_seed(derived_seed(asked.seed, "bounds", int(index_S[0])))
            z = pgd(double, x, y, threat=threat, budget=BUDGET, generator=generator)
            threat.check(z, x)
            with torch.no_grad():
                return (double(z).argmax(1) != y).cpu()

        index = [part for part in right_N[:tried].nonzero().flatten().split(ATTACK_CHUNK) if len(part)]
        for index_S, wrong_S in zip(index, in_parts(index, attacked), strict=True):
            broken[index_S] = wrong_S
    return Verified(threat.eps, right_N, torch.cat(least), broken, tried, classes, time.perf_counter() - began)


def _certificate(split: Split, threat: Threat, asked: Asked, found: Verified, path: Path | None) -> Certificate:
    n, count, chance = len(split), int(found.certified.sum()), 1 / found.classes
    value, right = count / n, int(found.right.sum())
    where = f"{split.split} points of {split.name}" if split.split else f"points of {split.name}"
    low, high = clopper_pearson(count, n)
    contradicted, warnings = found.contradicted, []
    if value <= chance:
        warnings.append(
            f"vacuous: no more than chance, 1/{found.classes}. Ordinary training leaves such bounds empty; train for "
            "them (wrm train --method ibp --eps E --norm linf)"
        )
    if contradicted:
        warnings.append(
            f"an attack made {len(contradicted)} certified points wrong (first: {contradicted[0]}): a fault of this "
            "program or of an assumption"
        )
    return Certificate(
        kind=asked.method,
        verdict="proven",
        statement=(
            f"Of these {n:,} {where}, each moved by at most {threat.eps:.4g} in {WORDS[threat.norm]} within "
            f"{format_range(threat.domain)}, the model gets at least {count:,} ({100 * value:.4g} %) right, so "
            f"its error is at most {100 * (1 - value):.4g} % (proven: {NAMES[asked.method]})."
        ),
        not_claimed=[
            f"other norms than {threat.norm}, larger radii, other changes that keep the meaning",
            "that the points not counted can be broken: the bounds are not tight",
            f"unseen data: for points drawn like these the share lies in {100 * low:.2f} to {100 * high:.2f} % by "
            "sampling error alone (95 %)",
            "formal verification: float64 rounds without direction, which the slack covers but does not prove",
        ],
        value=value,
        quantity="certified accuracy",
        bound="lower",
        threat={
            "norm": threat.norm,
            "radius": threat.eps,
            "average": False,
            "domain": "R^d" if threat.domain is None else list(threat.domain),
            "units": "unit of the model's input",
        },
        sample={
            "dataset": split.name,
            "split": split.split,
            "n": n,
            "sha256": split.digest(),
            "labels": "as given",
        },
        assumptions=[
            "the model is evaluated in evaluation mode, in real arithmetic with its stored weights",
            "every layer computes what its class says, without hooks",
        ],
        constants={
            "eps": threat.eps,
            "slack": SLACK,
            "clean_accuracy": right / n,
            "verified_error": 1 - value,
            "chance": chance,
            "interval_low": low,
            "interval_high": high,
        },
        solver={
            "method": asked.method,
            "intermediate": asked.intermediate if asked.method == "crown" else "ibp",
            "record": "" if path is None else str(path),
            "attacked_points": found.tried,
            "contradicted_points": contradicted,
        },
        empirical=None
        if not found.tried
        else {
            "attack": f"PGD inside the ball, {BUDGET.steps} steps, {BUDGET.restarts} starts, on the first "
            f"{found.tried:,} points: accuracy left, the points not tried counted as right where they are unmoved",
            "value": (right - int(found.broken.sum())) / n,
        },
        holds=not contradicted,
        vacuous=value <= chance,
        vacuous_above=chance,
        warnings=warnings,
        arithmetic=f"float64; {SLACK:g} of the largest output bound taken off every margin",
        seconds=found.seconds,
    )


def _write(path: Path | None, split: Split, found: Verified) -> None:
    """Write one line per point: index, label, right unmoved, certified, least margin proven, broken by the attack."""
    if path is None:
        return
    from iclr18cli.run.atomic import write_bytes

    columns = (split.y.tolist(), found.right.tolist(), found.certified.tolist(), found.least.tolist(),
               found.broken.tolist())  # fmt: skip
    lines = [
        f"{index}\t{label}\t{int(right)}\t{int(sure)}\t{least!r}\t{int(broken) if index < found.tried else '-'}"
        for index, (label, right, sure, least, broken) in enumerate(zip(*columns, strict=True))
    ]
    heading = "index\tlabel\tcorrect\tcertified\tleast_margin\tbroken"
    write_bytes(path, ("\n".join([heading, *lines]) + "\n").encode())
