"""CROWN: linear bounds of outputs in the input, carried backwards through the network (Zhang et al. 2018).

B batch · M bounded outputs · X the axes of one layer's input · K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclr18cli.attack.threat import Threat
from iclr18cli.certify.bounds.intervals import Boxes, Interval, affine
from iclr18cli.certify.bounds.network import Step
from iclr18cli.certify.bounds.relaxation import lines
from iclr18cli.errors import UserError

SLACK = 1e-9
"""Part of the scale of a float64 bound that is taken off for rounding."""


@dataclass
class Form:
    """A lower bound A z + b of M outputs by a linear form in a layer's output z: A (B, M, X), b (B, M)."""

    A: Tensor
    b: Tensor


def backward(steps: list[Step], form: Form, boxes: Boxes) -> Form:
    """Carry a lower bound in the outputs of a chain back to one in its inputs.

    Args:
        steps: From `chain`.
        form: In the chain's outputs.
        boxes: The box before every activation, from `intervals.propagate`.

    Raises:
        UserError: Max-pooling, or an activation without linear bounds.
    """
    for step in reversed(steps):
        if step.kind == "sum":
            assert step.branches is not None
            zero = torch.zeros_like(form.b)
            one = backward(step.branches[0], Form(form.A, form.b), boxes)
            other = backward(step.branches[1], Form(form.A, zero), boxes)
            form = Form(one.A + other.A, one.b + other.b)
        elif step.kind == "affine":
            form = _affine(step, form, boxes)
        elif step.kind == "activation":
            form = _activation(step, form, boxes[step.path])
        else:
            raise UserError(
                f"CROWN has no bounds for layer '{step.path}' (MaxPool2d).",
                fix="--method ibp, which has, or average pooling",
            )
    return form


def _affine(step: Step, form: Form, boxes: Boxes) -> Form:
    """z = W x + c: A z + b = (A W) x + (A c + b). The transposed map is torch's own gradient of the layer."""
    shape = boxes[step.path].lower.shape
    B, M = form.b.shape
    with torch.enable_grad():
        origin = torch.zeros(B * M, *shape[1:], dtype=form.A.dtype, device=form.A.device, requires_grad=True)
        value = step.layer(origin)
        (moved,) = torch.autograd.grad(value, origin, form.A.reshape(value.shape), materialize_grads=True)
    constant = (form.A.reshape(value.shape) * value.detach()).flatten(1).sum(1).reshape(B, M)
    return Form(moved.reshape(B, M, *shape[1:]), form.b + constant)


def _activation(step: Step, form: Form, box: Interval) -> Form:
    """Take the lower line where the weight is positive and the upper one where it is negative."""
    found = lines(step.layer, box.lower, box.upper)
    above, below = form.A.clamp(min=0), form.A.clamp(max=0)
    slope = above * found.lower_slope[:, None] + below * found.upper_slope[:, None]
    offset = above * found.lower_offset[:, None] + below * found.upper_offset[:, None]
    return Form(slope, form.b + offset.flatten(2).sum(2))


def concrete(form: Form, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return (least value of A x' + b over the threat set, its scale), both (B, M).

    linf: exact on the ball cut with the domain, a box. l2, l1: by the dual norm on the ball, and by the box around the
    set; the better of the two. The scale is |A| |x'| + |b|, what rounding is measured in.
    """
    lower, upper = threat.clip(x - threat.eps)[:, None], threat.clip(x + threat.eps)[:, None]
    value = (form.A.clamp(min=0) * lower + form.A.clamp(max=0) * upper).flatten(2).sum(2)
    if threat.norm != "linf":
        flat = form.A.flatten(2)
        dual = flat.norm(dim=2) if threat.norm == "l2" else flat.abs().amax(2)
        value = torch.maximum(value, (form.A * x[:, None]).flatten(2).sum(2) - threat.eps * dual)
    scale = (form.A.abs() * torch.maximum(lower.abs(), upper.abs())).flatten(2).sum(2) + form.b.abs()
    return value + form.b, scale


def tighten(
    steps: list[Step], at: Interval, boxes: Boxes, x: Tensor, threat: Threat, prefix: list[list[Step]] | None = None
) -> Interval:
    """Replace the boxes before activations by the better of CROWN's and the interval's, from the input on.

    Args:
        steps: A chain, whose input has the box `at`.
        boxes: Changed in place.
        x, threat: Inputs and what may happen to them.
        prefix: Chains before this one, the network's first layers first.

    Returns:
        The box of the chain's output.
    """
    prefix = prefix or []
    for place, step in enumerate(steps):
        boxes[step.path] = at
        before = [*prefix, steps[:place]]
        if step.kind == "sum":
            assert step.branches is not None
            one, other = (tighten(branch, at, boxes, x, threat, before) for branch in step.branches)
            at = Interval(one.lower + other.lower, one.upper + other.upper)
        elif step.kind == "affine":
            at = affine(step.layer, at)
        else:
            # Before the first activation of all the box is exact for linf, and as good as a linear form for l2 and l1.
            if any(inner.kind != "affine" for chain_before in before for inner in chain_before):
                at = boxes[step.path] = _box(at, before, boxes, x, threat)
            at = Interval(step.layer(at.lower), step.layer(at.upper))
    return at


ROWS = 256
"""Neurons bounded at once."""


def _box(at: Interval, before: list[list[Step]], boxes: Boxes, x: Tensor, threat: Threat) -> Interval:
    """Return the box of a layer's input by CROWN, cut with the one that is known."""
    B, shape = len(x), at.lower.shape[1:]
    size = shape.numel()
    lower, upper = at.lower.flatten(1).clone(), at.upper.flatten(1).clone()
    for start in range(0, size, ROWS):
        rows = torch.arange(start, min(start + ROWS, size), device=x.device)
        A = torch.zeros(len(rows), size, dtype=x.dtype, device=x.device)
        A[torch.arange(len(rows)), rows] = 1
        A = A.reshape(1, len(rows), *shape).expand(B, *[-1] * (1 + len(shape)))
        for sign in (1, -1):
            form = Form(sign * A, torch.zeros(B, len(rows), dtype=x.dtype, device=x.device))
            for chain_before in reversed(before):
                form = backward(chain_before, form, boxes)
            value, scale = concrete(form, x, threat)
            value = value - SLACK * scale
            if sign == 1:
                lower[:, rows] = torch.maximum(lower[:, rows], value)
            else:
                upper[:, rows] = torch.minimum(upper[:, rows], -value)
    # Two sound bounds may cross by rounding where both are exact.
    upper = torch.maximum(lower, upper)
    return Interval(lower.reshape(at.lower.shape), upper.reshape(at.upper.shape))
