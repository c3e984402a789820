"""The arithmetic of Deep Gradient Compression (Lin et al., ICLR 2018), on one worker and without communication.

A worker's step, section 3: clip g, u <- m u + g, v <- v + u, send the largest entries of v and clear v, and u, there.
All functions work on flat tensors of one dtype; names that end in an underscore change their arguments.
"""

# n entries of a tensor or of several laid end to end · K entries that are sent

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WIRE = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Name of a type of sent values -> its dtype."""


def entries(n: int, density: float) -> int:
    """Return how many entries of a tensor are sent: ceil(density n), at least 1 and at most n.

    Example:
        >>> entries(36_864, 0.001), entries(10, 0.001), entries(10, 1.0)
        (37, 1, 10)
    """
    return min(n, max(1, math.ceil(density * n)))


def compensate_(u: Tensor, v: Tensor, g: Tensor, *, momentum: float, nesterov: bool = False) -> None:
    """Take a gradient into velocity and residual: u <- m u + g, v <- v + u, Eq. (7).

    With nesterov, v <- v + (m u + g) with the new u (Appendix B). A zero momentum leaves u alone: it would be g.

    Args:
        u, v: (n,) velocity and accumulated velocity of this worker.
        g: (n,) its gradient.
    """
    if momentum == 0:
        v.add_(g)
        return
    u.mul_(momentum).add_(g)  # in two operations, as torch's SGD rounds it
    v.add_(torch.add(g, u, alpha=momentum) if nesterov else u)


def preview(
    u: Tensor, v: Tensor, g: Tensor, *, momentum: float, nesterov: bool = False, out: Tensor | None = None
) -> Tensor:
    """Return the v that `compensate_` would leave, bit for bit, and change nothing but `out`."""
    if momentum == 0:
        return torch.add(v, g, out=out)
    ahead = torch.mul(u, momentum, out=out).add_(g)
    if nesterov:
        ahead = torch.add(g, ahead, alpha=momentum, out=out)
    return ahead.add_(v)


def on_the_wire(value: Tensor, values: str) -> Tensor:
    """Return what a receiver will see of some values, in their own dtype: rounded; fp16 saturates at its largest."""
    dtype = WIRE[values]
    if dtype == value.dtype:
        return value
    if dtype == torch.float16:
        value = value.clamp(-65504.0, 65504.0)
    return value.to(dtype).to(value.dtype)


def settle_(u: Tensor, v: Tensor, index_K: Tensor, sent_K: Tensor, *, masking: bool) -> None:
    """Take what was sent out of v, and clear u there (momentum factor masking, section 3.2).

    v keeps what rounding took: 0 with a wire as wide as v. `index_K` holds no position twice.
    """
    v[index_K] -= sent_K
    if masking:
        u[index_K] = 0


def clip_(parts: Sequence[Tensor], threshold: float, *, together: bool) -> None:
    """Scale gradients to an L2 norm of at most `threshold`: each by itself, or all together as one vector."""
    norms = torch.stack(torch._foreach_norm(list(parts), 2))
    if together:
        norms = norms.norm().expand(len(parts))
    shares = (threshold / norms).clamp(max=1.0)  # a zero gradient gives infinity, so 1
    torch._foreach_mul_(list(parts), list(shares.unbind()))


def add_ranks_(out: Tensor, packets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Put the mean over workers of what they sent into a tensor that is zero there, and return it.

    One worker after the other: positions are unique within one, so that no addition has an undefined order and every
    rank gets the same bits, on a GPU too. The division comes after the sum.

    Args:
        out: (n,).
        packets: (positions (K,), values (K,)) of each worker, in the order of the ranks.
    """
    for index_K, value_K in packets:
        out.index_add_(0, index_K, value_K.to(out.dtype))
    if len(packets) > 1:
        touched = torch.cat([index_K for index_K, _ in packets])
        out[touched] = out[touched] / len(packets)  # a position met twice is written twice with the same value
    return out
