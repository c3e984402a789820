"""A retain rate for every unit: masks when training, the rates themselves otherwise.

For your own network: put `AdaptiveDropout(width)` in front of its dense layers; the regulariser is in `algorithm`.
"""

# B batch

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AdaptiveDropout(nn.Module):
    """Multiply by Bernoulli(theta) masks when training, by theta itself in evaluation; never divide by theta.

    Section 3 of the paper. The masks are drawn from the rates as they are now, by torch's generator of the input's
    device. Masks give theta no gradient; the deterministic pass does.

    Args:
        shape: Shape of one input without the batch, or its number of units.
        init: The rate that all units start with, in [0, 1].
        per: "unit": a rate each; "layer": one that all share.

    Shape:
        (B, *shape) to (B, *shape).

    Raises:
        ValueError: `init` lies outside [0, 1], a size is below 1, or `per` is unknown.

    Example:
        >>> drop = AdaptiveDropout(3, 0.5).eval()
        >>> drop(torch.ones(1, 3)).tolist()
        [[0.5, 0.5, 0.5]]
    """

    def __init__(self, shape: int | Sequence[int], init: float = 0.5, per: str = "unit"):
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"every size must be >= 1; received shape={shape!r}")
        if not 0 <= init <= 1:
            raise ValueError(f"init must lie in [0, 1]; received init={init!r}")
        if per not in ("unit", "layer"):
            raise ValueError(f"per must be 'unit' or 'layer'; received per={per!r}")
        self.theta = nn.Parameter(torch.full(self.shape if per == "unit" else (), float(init), dtype=torch.float32))

    @property
    def rates(self) -> Tensor:
        """Return the rates of all units, of the layer's shape; a view of theta."""
        return self.theta.expand(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return r * x or theta * x."""
        if not self.training:
            return x * self.theta
        # rand lies in [0, 1): a unit of rate 1 always passes, one of rate 0 never.
        r = torch.rand(x.shape, device=x.device) < self.theta.detach()
        return x * r.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the shape, and whether the rates are shared."""
        return f"{self.shape}, per={'layer' if self.theta.dim() == 0 else 'unit'}"


@contextmanager
def deterministic(net: nn.Module) -> Iterator[nn.Module]:
    """Use the rates in place of masks inside the block; other layers keep their modes."""
    drops = [part for part in net.modules() if isinstance(part, AdaptiveDropout)]
    modes = [part.training for part in drops]
    try:
        for part in drops:
            part.training = False
        yield net
    finally:
        for part, mode in zip(drops, modes, strict=True):
            part.training = mode


@contextmanager
def sampling(net: nn.Module) -> Iterator[nn.Module]:
    """Draw masks inside the block, all else in evaluation mode; afterwards everything is in evaluation mode."""
    net.eval()
    try:
        for part in net.modules():
            if isinstance(part, AdaptiveDropout):
                part.train()
        yield net
    finally:
        net.eval()


def project_(theta: Tensor, momentum: Tensor | None = None) -> None:
    """Clip rates to [0, 1] in place and forget the momentum of those that were outside.

    The authors clip inside the forward pass instead, where a rate that has left [0, 1] has no gradient and sticks.
    """
    with torch.no_grad():
        if momentum is not None:
            momentum.masked_fill_((theta < 0) | (theta > 1), 0.0)
        theta.clamp_(0.0, 1.0)
