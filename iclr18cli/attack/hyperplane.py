"""Decision boundaries as hyperplanes: a network linearised at a point, and the shortest way onto a plane inside a box.

S examples · X the axes of one input · D their product · K classes · C candidate classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.threat import Norm, per_example
from iclr18cli.errors import UserError

DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The norm of a gradient that says how fast a step of length 1 in the first norm can change the value (Hölder)."""


def length(delta_SX: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each example, (S,); Euclidean lengths neither under- nor overflow."""
    flat = delta_SX.flatten(1)
    if norm == "l2":
        largest = flat.abs().amax(1, keepdim=True)
        return (flat / largest.clamp(min=torch.finfo(flat.dtype).tiny)).square().sum(1).sqrt() * largest[:, 0]
    return flat.abs().amax(1) if norm == "linf" else flat.abs().sum(1)


def onto_hyperplane(
    x_SX: Tensor, w_SX: Tensor, c_S: Tensor, *, norm: Norm, domain: tuple[float, float] | None
) -> Tensor:
    """Return the smallest move from each x that ends on its hyperplane and inside the box.

    min |delta| such that w.delta = c and lo <= x + delta <= hi: Croce and Hein (2020), Eq. (5), solved exactly. Only
    coordinates that raise |w.delta| move. With r_i the room of coordinate i in its direction, the sizes are
    min(t, r_i) for linf and min(t |w_i|, r_i) for l2, with one t per example, found among the sorted places where a
    coordinate meets the box; for l1 coordinates use up their room in the order of falling |w_i|. Where plane and box do
    not meet, the corner of the box that comes nearest to the plane is returned, as there.

    Args:
        x_SX: (S, ...) points inside the domain.
        w_SX: (S, ...) normals; an example whose normal is 0 does not move.
        c_S: (S,) what w.delta is to be.
        norm: Norm of the move.
        domain: The box (lo, hi)^D; None: all of R^D.

    Returns:
        (S, ...) moves.

    Example:
        >>> x, w, c = torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0.4])
        >>> onto_hyperplane(x, w, c, norm="linf", domain=None).tolist()
        [[0.20000000298023224, 0.20000000298023224]]
        >>> [round(v, 6) for v in onto_hyperplane(x, w, c, norm="linf", domain=(0.0, 1.0))[0].tolist()]
        [0.3, 0.1]
    """
    x, w = x_SX.flatten(1), w_SX.flatten(1)
    sign = w.sign() * per_example(torch.where(c_S < 0, -1.0, 1.0).to(w.dtype), w)
    # Gradients near 1e-25, as a saturated softmax gives them, must not underflow when squared.
    largest = w.abs().amax(1, keepdim=True) if w.shape[1] else w.new_ones(len(w), 1)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    a, c = w.abs() / largest, c_S.abs()[:, None] / largest
    if domain is None:
        size = _anywhere(a, c, norm)
    else:
        room = torch.where(sign > 0, domain[1] - x, x - domain[0]).clamp(min=0) * sign.abs()
        size = _fill(a, c, room) if norm == "l1" else _water(a, c, room, norm)
    return (size * sign).reshape(x_SX.shape)


def _anywhere(a: Tensor, c: Tensor, norm: Norm) -> Tensor:
    """Sizes of the moves without a box: Hölder's inequality with equality."""
    if norm == "l1":
        best = a.argmax(1, keepdim=True)
        top = a.gather(1, best)
        return torch.zeros_like(a).scatter(1, best, torch.where(top > 0, c / top, torch.zeros_like(c)))
    speed = a if norm == "l2" else torch.ones_like(a)
    slope = (a * speed).sum(1, keepdim=True)
    return speed * torch.where(slope > 0, c / slope, torch.zeros_like(c))


def _water(a: Tensor, c: Tensor, room: Tensor, norm: Norm) -> Tensor:
    """Sizes min(t speed_i, room_i) with sum_i a_i size_i = c, for the norms linf and l2."""
    speed = a if norm == "l2" else torch.ones_like(a)
    meets, order = (room / speed.clamp(min=torch.finfo(a.dtype).tiny)).sort(1)
    a_sorted, slope_sorted = a.gather(1, order), (a * speed).gather(1, order)
    used = (a_sorted * room.gather(1, order)).cumsum(1)
    slope_left = slope_sorted.flip(1).cumsum(1).flip(1) - slope_sorted  # summed from the small end: no cancellation
    # A step below, "nan" would come of infinity times 0 where nothing is left to move.
    value = used + torch.where(slope_left > 0, meets * slope_left, torch.zeros_like(used))
    full = (value < c).sum(1, keepdim=True)  # so many coordinates are at the box before w.delta reaches c
    beyond = full == a.shape[1]
    place = full.clamp(max=a.shape[1] - 1)
    before = torch.where(full > 0, used.gather(1, (full - 1).clamp(min=0)), torch.zeros_like(c))
    slope = (slope_left + slope_sorted).gather(1, place)
    t = torch.where(slope > 0, (c - before) / slope, torch.zeros_like(c)).clamp(min=0)
    # One step of Newton's method on the sum itself takes out what the running sums have rounded.
    size = torch.minimum(t * speed, room)
    free_slope = torch.where(t * speed < room, a * speed, torch.zeros_like(a)).sum(1, keepdim=True)
    rest = c - (a * size).sum(1, keepdim=True)
    t = t + torch.where(free_slope > 0, rest / free_slope, torch.zeros_like(rest))
    return torch.where(beyond, room, torch.minimum(t.clamp(min=0) * speed, room))


def _fill(a: Tensor, c: Tensor, room: Tensor) -> Tensor:
    """Sizes of least sum with sum_i a_i size_i = c: the coordinates with the largest a_i first."""
    a_sorted, order = a.sort(1, descending=True)
    gain = a_sorted * room.gather(1, order)
    rest = c - (gain.cumsum(1) - gain)
    size = torch.where(a_sorted > 0, rest / a_sorted, torch.zeros_like(a)).clamp(min=0)
    return torch.zeros_like(a).scatter(1, order, torch.minimum(size, room.gather(1, order)))


def likeliest_wrong(logits_SK: Tensor, y_S: Tensor, count: int) -> Tensor:
    """Return the `count` wrong classes with the largest logits, the likeliest first, (S, C); C <= K - 1."""
    wrong_SK = logits_SK.scatter(1, y_S[:, None], -torch.inf)
    return wrong_SK.topk(min(count, logits_SK.shape[1] - 1), dim=1).indices


def nearest_boundary(
    model: nn.Module, z_SX: Tensor, y_S: Tensor, candidates_SC: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Linearise the boundaries between y and each candidate at z and return the nearest one.

    The boundary to class t is {z + delta : w.delta = -gap} with gap = f_t - f_y and w its gradient; its distance is
    |gap| / |w|_dual (Moosavi-Dezfooli et al. 2016, Eq. (8); Croce and Hein 2020, Eq. (7)).

    Args:
        model: In evaluation mode; gradients must be enabled.
        z_SX: (S, ...) points to linearise at.
        y_S: (S,) true classes.
        candidates_SC: (S, C) wrong classes, one backward pass each.
        norm: Norm in which a boundary is near.

    Returns:
        (gap, w): (S,) and (S, ...).

    Raises:
        UserError: The model's output has no gradient with respect to its input.
    """
    z_SX = z_SX.detach().requires_grad_()
    logits_SK = model(z_SX)
    true_S = logits_SK.gather(1, y_S[:, None]).squeeze(1)
    last = candidates_SC.shape[1] - 1
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for k in range(last + 1):
        gap_S = logits_SK.gather(1, candidates_SC[:, k : k + 1]).squeeze(1) - true_S
        w_SX = slope(gap_S, z_SX, keep=k < last)
        gap_S = gap_S.detach()
        if last == 0:
            return gap_S, w_SX
        away_S = gap_S.abs() / length(w_SX, DUAL[norm])
        away_S = torch.where(away_S.isnan(), torch.inf, away_S)
        if best is None:
            best = away_S, gap_S, w_SX
        else:
            nearer_S = away_S < best[0]
            best = (
                torch.where(nearer_S, away_S, best[0]),
                torch.where(nearer_S, gap_S, best[1]),
                torch.where(per_example(nearer_S, w_SX), w_SX, best[2]),
            )
    assert best is not None
    return best[1], best[2]


def slope(value_S: Tensor, z_SX: Tensor, *, keep: bool = False) -> Tensor:
    """Return the gradient of each example's value with respect to its input; what is not finite becomes 0.

    Raises:
        UserError: The value does not depend on the input through anything torch can differentiate.
    """
    if not value_S.requires_grad:
        raise UserError(
            "This attack needs gradients, and the model's output has none with respect to its input.",
            why="a step of the model rounds, detaches or leaves torch",
            fix="--attack noise, or a straight-through gradient in the model",
        )
    (w_SX,) = torch.autograd.grad(value_S.sum(), z_SX, retain_graph=keep, materialize_grads=True)
    return w_SX.nan_to_num(0.0, 0.0, 0.0)
