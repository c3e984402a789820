"""What an adversary may do to one input, and what it may spend on it.

B batch · X the axes of one input
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from iclr18cli.errors import UserError

Norm = Literal["linf", "l2", "l1"]
Loss = Literal["cross-entropy", "margin", "dlr"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Say how much an attack may compute and what it climbs. An attack reads the fields that mean something to it.

    Args:
        steps: Gradient steps per restart, at least 1.
        restarts: Starts per example, at least 1.
        step_size: Length of a step in the threat's norm; 0: 2.5 * eps / steps (Madry et al. 2018), enough to cross the
            ball and come back.
        loss: "cross-entropy"; "margin": largest wrong logit minus the right one, which does not saturate; "dlr": the
            margin in units of the spread of the logits (Croce and Hein 2020), which no rescaling hides.
        queries: Forward passes per example of an attack without gradients, at least 1.
        target_classes: Wrong classes a targeted attack tries, the likeliest first, at least 1.
        searches: Values of its trade-off constant that a minimal-norm attack tries per example, at least 1.
    """

    steps: int = 40
    restarts: int = 5
    step_size: float = 0.0
    loss: Loss = "cross-entropy"
    queries: int = 5000
    target_classes: int = 9
    searches: int = 9

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "queries", "target_classes", "searches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; received {name}={getattr(self, name)!r}")
        if not 0 <= self.step_size < float("inf"):
            raise ValueError(f"step_size must be >= 0 and finite; received {self.step_size!r}")
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {get_args(Loss)}; received {self.loss!r}")

    def step_length(self, eps: float) -> float:
        """Return the length of one step inside a ball of radius `eps`."""
        return self.step_size or 2.5 * eps / self.steps


@dataclass(frozen=True)
class Threat:
    """The set an adversary may choose from: {z : |z - x| <= eps, lo <= z <= hi}.

    Args:
        norm: "linf", "l2" or "l1", over all coordinates of one input.
        eps: Radius in the units of the inputs, >= 0; infinite for an attack that looks for the nearest error.
        domain: (lo, hi) that every coordinate stays in; None: all of R^d.
    """

    norm: Norm
    eps: float
    domain: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {get_args(Norm)}; received {self.norm!r}")
        if not self.eps >= 0:
            raise ValueError(f"eps must be >= 0; received {self.eps!r}")
        if self.domain is not None and not self.domain[0] < self.domain[1]:
            raise ValueError(f"domain must be (lo, hi) with lo < hi; received {self.domain!r}")

    def project(self, delta_BX: Tensor) -> Tensor:
        """Return the point of the ball that is nearest to each perturbation in the Euclidean sense.

        Args:
            delta_BX: (B, ...) perturbations.

        Example:
            >>> Threat("l2", 1.0, None).project(torch.tensor([[3.0, 4.0], [0.3, 0.4]])).tolist()
            [[0.6000000238418579, 0.800000011920929], [0.30000001192092896, 0.4000000059604645]]
        """
        if self.norm == "linf":
            return delta_BX.clamp(-self.eps, self.eps)
        if self.norm == "l1":
            return onto_l1_ball(delta_BX, self.eps)
        length = per_example(_norm(delta_BX, "l2"), delta_BX)
        return torch.where(length > self.eps, delta_BX * (self.eps / length), delta_BX)

    def clip(self, z_BX: Tensor) -> Tensor:
        """Return the inputs with every coordinate moved into the domain."""
        return z_BX if self.domain is None else z_BX.clamp(*self.domain)

    def bring_back(self, z_BX: Tensor, x_BX: Tensor) -> Tensor:
        """Return points of the threat set near `z`: into the ball first, then into the domain.

        x lies in the domain, so clipping moves each coordinate towards x and never out of the ball. For l1 the point is
        the nearest of ball and domain together: clipped afterwards, an l1 perturbation of an image would lose most of
        its length at pixels that cannot move (Croce and Hein 2021).
        """
        if self.norm != "l1" or self.domain is None or self.eps == float("inf"):
            return self.clip(x_BX + self.project(z_BX - x_BX))
        delta_BX = z_BX - x_BX
        room_BX = torch.where(delta_BX > 0, self.domain[1] - x_BX, x_BX - self.domain[0])
        return self.clip(x_BX + onto_l1_ball_in_box(delta_BX, room_BX, self.eps))

    def distance(self, z_BX: Tensor, x_BX: Tensor) -> Tensor:
        """Return |z - x| of each example, (B,), in float64 where the device has it."""
        wide = torch.float32 if x_BX.device.type == "mps" else torch.float64
        return _norm(z_BX.detach().to(wide) - x_BX.detach().to(wide), self.norm)

    def random(self, x_BX: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a point uniformly from the ball around each input, then clip it into the domain.

        The numbers are drawn on the generator's device: a CPU generator gives the same points on every device.
        """
        shape, options = x_BX.shape, dict[str, Any](dtype=x_BX.dtype, device=generator.device, generator=generator)
        if self.norm == "linf":
            delta = (2 * torch.rand(shape, **options) - 1) * self.eps
        else:
            if self.norm == "l2":
                direction = unit(torch.randn(shape, **options))
            else:  # exponentials over their sum are uniform on the simplex
                size = torch.empty(shape, **{k: v for k, v in options.items() if k != "generator"})
                size.exponential_(generator=generator)
                signed = size * (torch.rand(shape, **options) - 0.5).sign()
                direction = signed / per_example(_norm(signed, "l1"), signed)
            dimension = max(1, x_BX[0].numel()) if len(x_BX) else 1
            radius = torch.rand(shape[:1], **options) ** (1 / dimension) * self.eps
            delta = direction * per_example(radius, direction)
        return self.bring_back(x_BX + delta.to(x_BX.device), x_BX)

    def admit(self, x_BX: Tensor) -> None:
        """Refuse inputs that are not finite floats inside the declared range.

        Raises:
            UserError: An input is not finite or lies outside the domain; the range seen is stated.
            TypeError: The inputs are not floating point.
        """
        if not x_BX.is_floating_point():
            raise TypeError(f"inputs must be floating point; received {x_BX.dtype}")
        if x_BX.numel() == 0:
            return
        low, high = (bound.item() for bound in torch.aminmax(x_BX.detach()))  # NaN if one is NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("The inputs hold NaN or infinity.", fix="Clean the data set before it is attacked.")
        if self.domain is None:
            return
        slack = 1e-6 * (self.domain[1] - self.domain[0])  # what a round trip through another scale may leave
        if low < self.domain[0] - slack or high > self.domain[1] + slack:
            raise UserError(
                f"Inputs lie outside the declared range {format_range(self.domain)}.",
                why=f"they range over [{low:.6g}, {high:.6g}]; eps would mean something else there",
                fix="Give inputs in the declared range and make the normalisation the model's first layer.",
            )

    def check(self, z_BX: Tensor, x_BX: Tensor) -> Tensor:
        """Return the distances of an attack's result after proving that it kept to the threat.

        The tolerance is 1e-6 of eps and the rounding of the inputs' arithmetic.

        Raises:
            RuntimeError: The attack left the ball or the domain, or changed shape or type: a bug of the attack.
        """
        if z_BX.shape != x_BX.shape or z_BX.dtype != x_BX.dtype:
            raise RuntimeError(
                f"the attack returned {tuple(z_BX.shape)} {z_BX.dtype} for {tuple(x_BX.shape)} {x_BX.dtype}"
            )
        distance_B = self.distance(z_BX, x_BX)
        if x_BX.numel() == 0:
            return distance_B
        unit_roundoff = torch.finfo(x_BX.dtype).eps
        # Coordinates round independently, each by up to half a unit in the last place of the coordinate itself.
        rounding = unit_roundoff * max(x_BX.abs().max().item(), self.eps)
        if self.norm != "linf":
            rounding *= x_BX[0].numel() ** (0.5 if self.norm == "l2" else 1.0)
        worst = distance_B.max().item()
        if not worst <= self.eps * (1 + 1e-6) + rounding:  # also true of NaN
            raise RuntimeError(f"the attack moved an input by {worst!r} in {self.norm}; allowed is eps={self.eps!r}")
        if self.domain is not None:
            low, high = (bound.item() for bound in torch.aminmax(z_BX))
            slack = 1e-6 * (self.domain[1] - self.domain[0])
            if low < self.domain[0] - slack or high > self.domain[1] + slack:
                raise RuntimeError(f"the attack left the domain {self.domain}: inputs in [{low!r}, {high!r}]")
        return distance_B


def format_range(domain: tuple[float, float] | None) -> str:
    """Return a declared range as text: "[0, 1]", or "all real inputs"."""
    return "all real inputs" if domain is None else f"[{domain[0]:g}, {domain[1]:g}]"


def per_example(values_B: Tensor, like_BX: Tensor) -> Tensor:
    """Return (B,) values shaped to multiply a (B, ...) tensor."""
    return values_B.reshape(-1, *[1] * (like_BX.dim() - 1))


def unit(direction_BX: Tensor) -> Tensor:
    """Return each example's direction at Euclidean length 1; a zero direction stays zero.

    The largest entry is divided out first: squares of gradients near 1e-25, as a saturated softmax gives them, would
    underflow to a length of zero in float32.
    """
    largest = per_example(_norm(direction_BX, "linf"), direction_BX)
    scaled = torch.where(largest > 0, direction_BX / largest, torch.zeros_like(direction_BX))
    length = per_example(_norm(scaled, "l2"), scaled)
    return torch.where(length > 0, scaled / length, scaled)


def _norm(delta_BX: Tensor, norm: Norm) -> Tensor:
    flat = delta_BX.flatten(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(len(flat))
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.square().sum(1).sqrt() if norm == "l2" else flat.abs().sum(1)


def onto_l1_ball(delta_BX: Tensor, radius: float) -> Tensor:
    """Return the Euclidean projection onto {|d|_1 <= radius}: every entry shrunk by one threshold per example.

    Duchi et al. (2008), figure 1: with the sizes sorted from large to small, the threshold is that of the last place
    whose size exceeds it.

    Example:
        >>> onto_l1_ball(torch.tensor([[3.0, -1.0], [0.2, 0.1]]), 2.0).tolist()
        [[2.0, -0.0], [0.20000000298023224, 0.10000000149011612]]
    """
    size = delta_BX.flatten(1).abs()
    inside_B = size.sum(1) <= radius
    if bool(inside_B.all()):
        return delta_BX
    sorted_BD = size.sort(dim=1, descending=True).values
    place = torch.arange(1, size.shape[1] + 1, device=size.device, dtype=size.dtype)
    threshold_BD = (sorted_BD.cumsum(1) - radius) / place
    last_B = (sorted_BD > threshold_BD).sum(1).clamp(min=1) - 1
    threshold_B = threshold_BD.gather(1, last_B[:, None]).clamp(min=0)
    shrunk = (size - threshold_B).clamp(min=0).reshape(delta_BX.shape) * delta_BX.sign()
    return torch.where(per_example(inside_B, delta_BX), delta_BX, shrunk)


def onto_l1_ball_in_box(delta_BX: Tensor, room_BX: Tensor, radius: float) -> Tensor:
    """Return the Euclidean projection onto {|d|_1 <= radius, |d_i| <= room_i}, with d_i of the sign of delta_i.

    Each size becomes clamp(size - threshold, 0, room). Their sum falls with the threshold on straight lines between
    breaks at size - room, where an entry leaves its bound, and size, where it reaches 0; sorted, they give the
    threshold at which the sum is the radius (Croce and Hein 2021).

    Args:
        delta_BX: (B, ...) perturbations.
        room_BX: (B, ...) how far each coordinate may move in the direction of delta, >= 0.
        radius: >= 0.

    Example:
        >>> onto_l1_ball_in_box(torch.tensor([[3.0, -2.0, 0.5]]), torch.tensor([[1.0, 5.0, 5.0]]), 2.0).tolist()
        [[1.0, -1.0, 0.0]]
    """
    size = delta_BX.flatten(1).abs()
    room = room_BX.flatten(1).clamp(min=0)
    sum_B = torch.minimum(size, room).sum(1)
    over_B = sum_B > radius
    if not bool(over_B.any()):
        return torch.minimum(size, room).reshape(delta_BX.shape) * delta_BX.sign()
    breaks, order = torch.cat([(size - room).clamp(min=0), size], 1).sort(1)
    slope = torch.where(order < size.shape[1], -1, 1).cumsum(1)[:, :-1]
    gaps = (slope * breaks.diff(dim=1)).cumsum(1)
    sums = sum_B[:, None] + torch.cat([torch.zeros_like(gaps[:, :1]), gaps], 1)  # at each break; falls
    last_B1 = ((sums >= radius).sum(1, keepdim=True) - 1).clamp(0, slope.shape[1] - 1)
    fall = slope.gather(1, last_B1).neg().clamp(min=1)
    threshold_B1 = breaks.gather(1, last_B1) + (sums.gather(1, last_B1) - radius) / fall
    threshold_B1 = torch.where(over_B[:, None], threshold_B1.clamp(min=0), torch.zeros_like(threshold_B1))
    shrunk = torch.minimum((size - threshold_B1).clamp(min=0), room)
    return shrunk.reshape(delta_BX.shape) * delta_BX.sign()
