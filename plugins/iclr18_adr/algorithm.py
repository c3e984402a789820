"""What the critics measure, and the three losses of an iteration, Saito et al. (2018). All take logits.

Images (B, K) and dense predictions (B, K, H, W) alike: classes are dimension 1, every other one is averaged over, so
that the segmentation form of the critic (section 3 of the paper) is the same function.
"""

# B batch · K classes · D features · H height · W width · P pixels, the rest of the dimensions

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Added inside the logarithms of the authors' entropy and of the class balance, as their code does."""


def symmetric_kl(z1_BKP: Tensor, z2_BKP: Tensor) -> Tensor:
    """Return d(p1, p2) = 1/2 (KL(p1||p2) + KL(p2||p1)) of two predictions, Eq. (1).

    Computed as 1/2 sum_k (p1_k - p2_k)(log p1_k - log p2_k) from log-softmax: finite for any finite logits.

    Args:
        z1_BKP, z2_BKP: Logits (B, K, ...).

    Returns:
        (B, ...) in nats, >= 0, 0 where the predictions agree; no upper bound.

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> symmetric_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).tolist()
        [0.0]
    """
    if z1_BKP.shape != z2_BKP.shape or z1_BKP.dim() < 2:
        raise ValueError(f"both logits must be (B, K, ...); received {tuple(z1_BKP.shape)} and {tuple(z2_BKP.shape)}")
    l1, l2 = F.log_softmax(z1_BKP, 1), F.log_softmax(z2_BKP, 1)
    return 0.5 * ((l1.exp() - l2.exp()) * (l1 - l2)).sum(1)


def l1_distance(z1_BKP: Tensor, z2_BKP: Tensor) -> Tensor:
    """Return mean_k |p1_k - p2_k|, MCD's discrepancy (Saito et al. 2018b): (B, ...) in [0, 2/K]."""
    return (z1_BKP.softmax(1) - z2_BKP.softmax(1)).abs().mean(1)


def authors_symmetric_kl(z1_BKP: Tensor, z2_BKP: Tensor) -> Tensor:
    """Return what the authors' `discrepancy` computes: softmax taken twice, targets detached, a mean over classes.

    1/2 mean_k [ t2_k (log t2_k - log q1_k) + t1_k (log t1_k - log q2_k) ] with t = softmax(z), a constant, and q =
    softmax(t). Neither value nor gradient is 0 at equal predictions: minimising it sharpens every prediction.

    Returns:
        (B, ...), for K = 10 between 0 and 0.246.
    """
    p1, p2 = z1_BKP.softmax(1), z2_BKP.softmax(1)
    q1, q2 = F.log_softmax(p1, 1), F.log_softmax(p2, 1)
    t1, t2 = p1.detach(), p2.detach()
    first, second = torch.xlogy(t2, t2) - t2 * q1, torch.xlogy(t1, t1) - t1 * q2
    return 0.5 * (first + second).mean(1)


def entropy(z_BKP: Tensor) -> Tensor:
    """Return -sum_k p_k log p_k: (B, ...) in [0, log K] nats."""
    log_p = F.log_softmax(z_BKP, 1)
    return -(log_p.exp() * log_p).sum(1)


def authors_entropy(z_BKP: Tensor) -> Tensor:
    """Return -mean_k p_k log(p_k + 1e-6), K times smaller than the entropy, as the authors' ENT has it."""
    p = z_BKP.softmax(1)
    return -(p * (p + EPS).log()).mean(1)


def class_balance(z_BKP: Tensor) -> Tensor:
    """Return -mean_k log(mean_B p_k + 1e-6), a number >= log K (up to 1e-6) that is least at balanced predictions."""
    p = z_BKP.softmax(1).transpose(0, 1).flatten(1).mean(1)
    return -(p + EPS).log().mean()


MEASURES = {
    ("adr", "paper"): symmetric_kl,
    ("adr", "authors"): authors_symmetric_kl,
    ("l1", "paper"): l1_distance,
    ("l1", "authors"): l1_distance,
    ("mcd", "paper"): l1_distance,
    ("mcd", "authors"): l1_distance,
    ("ent", "paper"): lambda z1, z2: entropy(z1),
    ("ent", "authors"): lambda z1, z2: authors_entropy(z1),
}


def adversarial_loss(critic: str, z1_BKP: Tensor, z2_BKP: Tensor, *, variant: str = "paper") -> Tensor:
    """Return L_adv, the mean of the critic's measure over the batch (and pixels).

    Args:
        critic: "adr", "l1", "mcd" or "ent" (which reads the first prediction alone).
        z1_BKP, z2_BKP: Logits of two draws of C, or of MCD's two heads.
        variant: "paper" or "authors".

    Raises:
        ValueError: There is no such measure.
    """
    if (critic, variant) not in MEASURES:
        raise ValueError(f"critic must be adr, l1, mcd or ent; received {critic!r} with variant {variant!r}")
    return MEASURES[critic, variant](z1_BKP, z2_BKP).mean()


def draws(critic: str, C: nn.Module, second: nn.Module, f: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two predictions that the critic compares: two dropout draws of C, or F1 and F2 for MCD.

    Two passes and not one of the doubled batch, because batch normalisation inside C normalises by the batch. ENT looks
    at one prediction, so it is computed once.
    """
    first = C(f)
    if critic == "ent":
        return first, first
    return first, second(f) if critic == "mcd" else C(f)


@contextmanager
def sampling(module: nn.Module) -> Iterator[nn.Module]:
    """Hold dropout in training mode and everything else in evaluation mode: a critic drawn for measuring."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = isinstance(part, nn.modules.dropout._DropoutNd)
        yield module
    finally:
        for part, training in modes:
            part.training = training


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(x: Tensor, scale: float) -> Tensor:
    """Return x; its gradient comes back multiplied by -scale (Ganin and Lempitsky 2015, Eq. 18)."""
    return _Reverse.apply(x, scale)
