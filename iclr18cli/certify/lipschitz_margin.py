"""The certificate by global Lipschitz constants: a margin in the logits is a radius in the input.

If z_y - z_j is K_yj-Lipschitz for every j and exceeds 0 at x, class y is predicted wherever |x' - x| is less than
min_j (z_y - z_j)/K_yj. One forward pass, no sampling, any radius.

N points · B batch · X the axes of one input · C classes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.pgd import pgd, steepest
from iclr18cli.attack.threat import Budget, Threat, per_example
from iclr18cli.certify.lipschitz_wording import Broken, Facts, certificate
from iclr18cli.certify.pair_constants import PairConstants, pair_constants
from iclr18cli.certify.problem import check_labels, exact_copy
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.shared_points import agreed, in_parts, joined, slices
from iclr18cli.certify.smoothness import InputNorm
from iclr18cli.data.tensors import Split
from iclr18cli.models.modes import device_of, evaluating

RADII: dict[str, tuple[float, ...]] = {
    "l2": (36 / 255, 72 / 255, 108 / 255),
    "linf": (1 / 255, 2 / 255, 8 / 255),
}
"""Radii in the unit of an input in [0, 1]: for the 2-norm those of the literature on Lipschitz networks."""

SLACK = 1e-9
"""Share of the largest logit that a margin loses to the rounding of the float64 forward pass; it is below 1e-12."""

ATTACK_NUMBERS = 200_000
"""Input numbers (points times coordinates) that the attack inside the certified set moves, at least 100 points."""

ATTACK_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a certification by Lipschitz constants.

    Args:
        norm: "l2" or "linf".
        radii: Radii of the table, in the unit of the input; empty: `RADII` of the norm.
        attack: Attack inside the certified set.
        batch_size: Points per evaluation; 0: from the free memory.
        memory: Bytes the matrices of one layer may take.
    """

    norm: InputNorm = "l2"
    radii: Sequence[float] = ()
    attack: bool = True
    batch_size: int = 0
    memory: int = 2**31

    def __post_init__(self) -> None:
        if self.norm not in RADII:
            raise ValueError(f"norm must be 'l2' or 'linf'; received norm={self.norm!r}")
        if any(not 0 <= radius < float("inf") for radius in self.radii):
            raise ValueError(f"radii must be finite numbers >= 0; received radii={self.radii!r}")

    @property
    def table(self) -> Sequence[float]:
        """Return the radii of the table."""
        return tuple(dict.fromkeys(self.radii)) or RADII[self.norm]


def lipschitz(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: InputNorm = "l2",
    radii: Sequence[float] = (),
    input_range: tuple[float, float] | None = None,
    attack: bool = True,
    batch_size: int = 0,
) -> list[Certificate]:
    """Bound from below the share of points that a model gets right however each is moved within a radius.

    Certification card, section 3; deterministic, of the model itself. The same run attacks inside the certified balls,
    by `radius` and by each point's own certified radius; `holds` is false where that changes a certified class.

    Args:
        model: Maps (N, *shape) to (N, C) logits; a network `smoothness` can walk. Held in evaluation mode, flags and
            gradients left as they were.
        x: (N, *shape) raw inputs: float, taken as float32, or uint8 images, divided by 255.
        y: (N,) classes.
        norm: "l2" or "linf".
        radii: Radii of the table, in the unit of x; empty: `RADII` of the norm.
        input_range: (low, high) that the inputs are checked to lie in. The claim is for all of R^d.
        attack: Attack inside the certified set.
        batch_size: Points per evaluation; 0: from the free memory.

    Returns:
        One certificate per radius, in order.

    Raises:
        UserError: A layer has no known constant, inputs lie outside the range, or labels outside the classes.
        ValueError: A number is out of range.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0], [-1.0]])
        >>> x, y = torch.tensor([[1.0], [0.25], [-2.0]]), torch.tensor([0, 0, 1])
        >>> [round(found.value, 3) for found in lipschitz(net, x, y, radii=(0.5, 1.5))]
        [0.667, 0.333]
    """
    asked = Asked(norm=norm, radii=tuple(radii), attack=attack, batch_size=batch_size)
    points = x if x.dtype == torch.uint8 else x.float()
    classes = tuple(str(label) for label in range(int(y.max()) + 1)) if len(y) else ()
    domain = (0.0, 1.0) if x.dtype == torch.uint8 else input_range
    return certify_lipschitz(model, Split(points, y.long(), classes, "the points given", "", domain), asked)


def certify_lipschitz(
    model: nn.Module,
    split: Split,
    asked: Asked,
    *,
    progress: Callable[[int], object] | None = None,
    record: Callable[[], Path | None] = lambda: None,
) -> list[Certificate]:
    """Do the work of `lipschitz` for a split.

    Args:
        progress: Told how many points were evaluated.
        record: Names the TSV file for the radius of every point, asked for when these are known; None: no file.

    Raises:
        As `lipschitz`.
    """
    began = time.perf_counter()
    tell = progress or (lambda n: None)
    device = device_of(model, torch.device("cpu"))
    device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
    x, y = split.to(device).inputs(), split.y.to(device)
    Threat(asked.norm, 0.0, split.range).admit(x)
    with evaluating(model):
        constants = pair_constants(model, split.shape, norm=asked.norm, memory=asked.memory)
        double = exact_copy(model).to(device)
    size = agreed(asked.batch_size or batch_size_for(double, x[: min(8, len(x))].double()))
    radius_N, right_N, slack = _margins(double, x, y, constants, split, size, tell)
    broken = attacked(double, x, y, radius_N, right_N, asked, size) if asked.attack else None
    path = record()
    if path is not None:
        write_points(path, split, radius_N.tolist(), right_N.tolist())
    facts = Facts(
        split=split,
        norm=asked.norm,
        constants=constants,
        radii=radius_N.tolist(),
        right=int(right_N.sum()),
        slack=slack,
        broken=broken,
        batch_size=size,
        record="" if path is None else str(path),
        seconds=time.perf_counter() - began,
    )
    return [certificate(facts, radius) for radius in asked.table]


def certified_radii(logits_BC: Tensor, y_B: Tensor, between_CC: Tensor) -> Tensor:
    """Return min_j (z_y - z_j - slack)/K_yj of each point, 0 where that is negative.

    Args:
        logits_BC: (B, C) float64 logits.
        y_B: (B,) classes that are to be kept.
        between_CC: (C, C) Lipschitz constants of the differences of logits, on the same device.

    Returns:
        (B,) float64; infinite where no class can ever catch up.

    Example:
        >>> between = torch.tensor([[0.0, 5.0], [5.0, 0.0]], dtype=torch.float64)
        >>> logits = torch.tensor([[10.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> [round(radius, 6) for radius in certified_radii(logits, torch.tensor([0, 0]), between).tolist()]
        [2.0, 0.0]
    """
    slack_B1 = SLACK * logits_BC.abs().amax(1, keepdim=True)
    margin_BC = logits_BC.gather(1, y_B[:, None]) - logits_BC - slack_B1
    radius_BC = torch.where(margin_BC > 0, margin_BC / between_CC[y_B], 0.0)
    return radius_BC.scatter(1, y_B[:, None], torch.inf).amin(1)


def _margins(
    double: nn.Module,
    x: Tensor,
    y: Tensor,
    constants: PairConstants,
    split: Split,
    size: int,
    tell: Callable[[int], object],
) -> tuple[Tensor, Tensor, float]:
    """Return certified radii, which points are right, and the largest slack."""
    between_CC = constants.between.to(x.device)
    check_labels(split, len(between_CC))

    def certified(part: slice) -> tuple[Tensor, Tensor, float]:
        y_B = y[part]
        with torch.no_grad():
            logits_BC = double(x[part].double())
        tell(len(y_B))
        return certified_radii(logits_BC, y_B, between_CC), logits_BC.argmax(1) == y_B, float(logits_BC.abs().amax())

    radii, right, largest = zip(*in_parts(slices(len(x), size), certified), strict=True)
    return joined(radii, x.device), joined(right, x.device), SLACK * max(largest)


def attacked(
    double: nn.Module, x: Tensor, y: Tensor, radius_N: Tensor, right_N: Tensor, asked: Asked, size: int
) -> Broken:
    """Attack within every radius of the table, and every point within its own certified radius, in float64.

    All of R^d is open to the attack, as the claim is for all of it. A point counts against the certificate when it is
    wrong at a place nearer than its certified radius.
    """
    tried = min(len(x), max(100, ATTACK_NUMBERS // max(1, x[0].numel())))
    budget, ball = Budget(steps=ATTACK_STEPS, restarts=1, loss="margin"), Threat(asked.norm, float("inf"), None)

    def attack(place_S: Tensor) -> tuple[list[int], list[int]]:
        found = []
        x_SX, y_S, own_S = x[place_S].double(), y[place_S], radius_N[place_S]
        contradicted_S = torch.zeros_like(y_S, dtype=torch.bool)
        for radius in asked.table:
            z_SX = pgd(double, x_SX, y_S, threat=Threat(asked.norm, radius, None), budget=budget)
            wrong_S = _wrong(double, z_SX, y_S)
            found.append(int(wrong_S.sum()))
            contradicted_S |= wrong_S & (ball.distance(z_SX, x_SX) < own_S)
        # Where no class can ever catch up the radius is infinite; the largest of the table is tried.
        reach_S = torch.where(own_S.isfinite(), own_S, max(asked.table))
        z_SX = _climb(double, x_SX, y_S, reach_S, ball)
        contradicted_S |= _wrong(double, z_SX, y_S) & (ball.distance(z_SX, x_SX) < own_S)
        return found, place_S[contradicted_S].tolist()

    right_S = right_N[:tried].nonzero().squeeze(1)
    results = in_parts([right_S[part] for part in slices(len(right_S), size)], attack)
    within = {radius: sum(found[i] for found, _ in results) for i, radius in enumerate(asked.table)}
    certified = [place for _, places in results for place in places]
    return Broken(tried=tried, within=within, certified=certified, steps=ATTACK_STEPS)


def _climb(model: nn.Module, x_SX: Tensor, y_S: Tensor, radius_S: Tensor, ball: Threat) -> Tensor:
    """Return the best iterates of `ATTACK_STEPS` of ascent on points that each have a ball of their own."""
    inside_S = radius_S * (1 - 1e-9)
    step = per_example(2.5 / ATTACK_STEPS * inside_S, x_SX)
    z_SX, best_SX, best_S = x_SX.clone(), x_SX.clone(), torch.full_like(radius_S, -torch.inf)
    for t in range(ATTACK_STEPS + 1):
        z_SX.requires_grad_()
        value_S = objective(model(z_SX), y_S, loss="margin")
        (gradient_SX,) = torch.autograd.grad(value_S.sum(), z_SX)
        z_SX, better_S = z_SX.detach(), value_S.detach() > best_S
        best_SX = torch.where(per_example(better_S, z_SX), z_SX, best_SX)
        best_S = torch.where(better_S, value_S.detach(), best_S)
        if t < ATTACK_STEPS:
            delta_SX = z_SX + step * steepest(gradient_SX, ball) - x_SX
            length_S = ball.distance(x_SX + delta_SX, x_SX)
            if ball.norm == "linf":
                edge = per_example(inside_S, x_SX)
                delta_SX = torch.minimum(torch.maximum(delta_SX, -edge), edge)
            else:
                delta_SX = delta_SX * per_example((inside_S / length_S.clamp(min=1e-300)).clamp(max=1), x_SX)
            z_SX = x_SX + delta_SX
    return best_SX


def _wrong(model: nn.Module, z_SX: Tensor, y_S: Tensor) -> Tensor:
    with torch.no_grad():
        return model(z_SX).argmax(1) != y_S


def write_points(path: Path, split: Split, radii: Sequence[float], right: Sequence[bool]) -> None:
    """Write one line per point: index, label, whether it is right unmoved, and its certified radius.

    Raises:
        UserError: The file cannot be written.
    """
    from iclr18cli.run.atomic import write_bytes

    rows = enumerate(zip(split.y.tolist(), right, radii, strict=True))
    lines = [f"{index}\t{label}\t{int(correct)}\t{radius!r}" for index, (label, correct, radius) in rows]
    write_bytes(path, ("\n".join(["index\tlabel\tcorrect\tradius", *lines]) + "\n").encode())
