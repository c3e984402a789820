"""Bounds of a network's outputs over a ball of inputs: intervals (IBP) and linear relaxations (CROWN).

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from iclr18cli.attack.memory import free_bytes
from iclr18cli.attack.threat import Threat
from iclr18cli.certify.bounds import crown, intervals
from iclr18cli.certify.bounds.network import Step, chain
from iclr18cli.certify.problem import exact_copy

Method = Literal["ibp", "crown"]
Intermediate = Literal["auto", "ibp", "crown"]

SLACK = 1e-6
"""Part of the largest absolute output bound that is taken off every margin: float64 rounds without direction."""

FEW = 2000
"""Neurons up to which "auto" bounds every hidden layer by CROWN as well."""


def margins(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    method: Method = "crown",
    intermediate: Intermediate = "auto",
    batch_size: int = 0,
) -> Tensor:
    """Return proven lower bounds of z_y - z_j over the threat set of every input.

    The prediction is y everywhere in the set if all are above 0. CROWN takes the better of both, in hidden layers too,
    so it is never below IBP. Computed in float64; `SLACK` of the bounds' size is taken off.

    Args:
        model: Layers as `iclr18cli.certify.bounds.network.chain` knows them; in evaluation mode, left as it was.
        x: (B, *X) inputs in the domain.
        y: (B,) classes.
        threat: linf, l2 or l1 ball, cut with the domain.
        method: "ibp", or "crown": linear bounds carried back to the input (Zhang et al. 2018).
        intermediate: For CROWN, where hidden layers' bounds come from: "ibp", "crown", or "auto": CROWN for networks of
            at most 2,000 hidden neurons.
        batch_size: Inputs at once; 0: from memory.

    Returns:
        (B, K) float64, 0 at j = y.

    Raises:
        UserError: A layer without bounds.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
        >>> found = margins(net, torch.tensor([[1.0, 1.0]]), torch.tensor([0]), threat=Threat("linf", 0.5, None))
        >>> [round(value, 4) for value in found[0].tolist()]  # |w_0 - w_1|_1 * 0.5 = 2 less than the margin of 4
        [0.0, 2.0]
    """
    threat.admit(x)
    exact = exact_copy(model)
    steps = chain(exact)
    x, found = x.double(), []
    with torch.no_grad():
        classes = exact(x[:1]).shape[-1]
        size = batch_size or _batch(steps, x, classes, method, intermediate)
        for x_BX, y_B in zip(x.split(size), y.split(size), strict=True):
            found.append(_margins(steps, x_BX, y_B, threat, method, intermediate, classes))
    return torch.cat(found)


def output_bounds(
    model: nn.Module, x: Tensor, *, threat: Threat, method: Method = "crown", intermediate: Intermediate = "auto"
) -> tuple[Tensor, Tensor]:
    """Return (lower, upper), each (B, K) float64: every output over the threat set lies between them.

    Args, Raises: As for `margins`.
    """
    threat.admit(x)
    steps, x = chain(exact_copy(model)), x.double()
    with torch.no_grad():
        at = intervals.of_threat(x, threat)
        boxes: intervals.Boxes = {}
        out = intervals.propagate(steps, at, boxes)
        lower, upper = out.lower, out.upper
        if method == "crown":
            if _full(boxes, steps, intermediate):
                out = crown.tighten(steps, at, boxes, x, threat)
                lower, upper = out.lower, out.upper
            eye = torch.eye(lower.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
            for sign in (1, -1):
                form = crown.backward(steps, crown.Form(sign * eye, torch.zeros_like(lower)), boxes)
                value, _ = crown.concrete(form, x, threat)
                lower, upper = (torch.maximum(lower, value), upper) if sign > 0 else (
                    lower, torch.minimum(upper, -value)
                )  # fmt: skip
    slack = SLACK * torch.maximum(lower.abs(), upper.abs()).amax(1, keepdim=True)
    return lower - slack, upper + slack


def _margins(
    steps: list[Step], x: Tensor, y: Tensor, threat: Threat, method: Method, intermediate: Intermediate, classes: int
) -> Tensor:
    at = intervals.of_threat(x, threat)
    boxes: intervals.Boxes = {}
    out = intervals.propagate(steps, at, boxes)
    found = intervals.margins(steps, at, y)
    if method == "crown":
        if _full(boxes, steps, intermediate):
            crown.tighten(steps, at, boxes, x, threat)
        eye = torch.eye(classes, dtype=x.dtype, device=x.device)
        form = crown.Form(eye[y][:, None] - eye, torch.zeros(len(x), classes, dtype=x.dtype, device=x.device))
        value, _ = crown.concrete(crown.backward(steps, form, boxes), x, threat)
        found = torch.maximum(found, value)
    found = found - SLACK * torch.maximum(out.lower.abs(), out.upper.abs()).amax(1, keepdim=True)
    return found.scatter(1, y[:, None], 0.0)


def _full(boxes: intervals.Boxes, steps: list[Step], intermediate: Intermediate) -> bool:
    """Return whether hidden layers are to be bounded by CROWN as well."""
    if intermediate != "auto":
        return intermediate == "crown"
    return _neurons(boxes, steps) <= FEW


def _neurons(boxes: intervals.Boxes, steps: list[Step]) -> int:
    total = 0
    for step in steps:
        if step.kind == "sum":
            assert step.branches is not None
            total += sum(_neurons(boxes, branch) for branch in step.branches)
        elif step.kind == "activation":
            total += boxes[step.path].lower[0].numel()
    return total


def _batch(steps: list[Step], x: Tensor, classes: int, method: Method, intermediate: Intermediate) -> int:
    """Return how many inputs fit: the widest layer, once per bounded output, with a few copies."""
    boxes: intervals.Boxes = {}
    intervals.propagate(steps, intervals.of_threat(x[:1], Threat("linf", 0.0, None)), boxes)
    widest = max(box.lower[0].numel() for box in boxes.values())
    rows = 1 if method == "ibp" else (crown.ROWS if _full(boxes, steps, intermediate) else classes)
    return max(1, min(1024, int(free_bytes(x.device) / (8 * 8 * widest * rows))))
