"""Losses of critic and generator, and the baselines' constraints on the critic.

B batch · X the axes of one input
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_sngan.config import Loss


def critic_loss(kind: Loss, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Return what the critic minimises.

    hinge, Eq. (16): E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))). softplus, Eq. (2) with D the logit:
    E softplus(-D(x)) + E softplus(D(G(z))). wasserstein: E D(G(z)) - E D(x).
    """
    match kind:
        case "hinge":
            return F.relu(1 - real_B).mean() + F.relu(1 + fake_B).mean()
        case "softplus":
            return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()
        case "wasserstein":
            return fake_B.mean() - real_B.mean()
    raise ValueError(f"loss must be hinge, softplus or wasserstein; received {kind!r}")


def generator_loss(kind: Loss, fake_B: Tensor) -> Tensor:
    """Return what the generator minimises: -E D(G(z)), Eq. (17), or with softplus E softplus(-D(G(z)))."""
    return F.softplus(-fake_B).mean() if kind == "softplus" else -fake_B.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, t_B: Tensor) -> Tensor:
    """Return E (|grad D(t x + (1 - t) G(z))| - 1)^2, Gulrajani et al. (2017), differentiable in the critic.

    Args:
        critic: (B, *X) to (B,).
        real, fake: (B, *X).
        t_B: (B,) in [0, 1].
    """
    t = t_B.view(-1, *(1,) * (real.dim() - 1))
    between = (t * real + (1 - t) * fake).requires_grad_()
    (grad,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


def orthonormal_penalty(weights: Iterable[Tensor]) -> Tensor:
    """Return sum |W W^T - I|_F^2 over the reshaped weights, Brock et al. (2016).

    The smaller of the two Gram matrices is taken; |W^T W - I|^2 differs from it by the constant |m - n|.
    """
    terms = []
    for W in weights:
        matrix = W.flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        terms.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum())
    return torch.stack(terms).sum()


@torch.no_grad()
def clip_(module: nn.Module, bound: float) -> None:
    """Put every number of a module into [-bound, bound], Arjovsky et al. (2017)."""
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)
