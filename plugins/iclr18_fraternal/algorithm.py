"""Fraternal dropout: a penalty on the distance of two predictions under two masks, for any network.

Three lines for your own model:

    twins = FraternalTwins(model)
    out1, out2 = twins(x)
    loss = fraternal_loss(out1, out2, criterion(out1, y), criterion(out2, y), kappa=0.15)
"""

# m outputs of a prediction · … any other dimensions: time, batch

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Distance = Literal["logits-l2", "sym-kl"]


def twin_penalty(
    out1: Tensor, out2: Tensor, *, distance: Distance = "logits-l2", mask: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Return the distance of two predictions, averaged over all predictions.

    Args:
        out1, out2: (…, m) logits. Gradients flow through both.
        distance: "logits-l2": (1/m) |p_1 - p_2|^2, section 2. "sym-kl": half of KL(1, 2) + KL(2, 1) of the softmax, as
            in R-Drop (Liang et al. 2021).
        mask: (…), True where a prediction counts; None: everywhere.

    Raises:
        ValueError: The shapes differ, or the distance is unknown.
    """
    if out1.shape != out2.shape:
        raise ValueError(f"twins must have one shape; received {tuple(out1.shape)} and {tuple(out2.shape)}")
    if distance == "logits-l2":
        if mask is None:
            return F.mse_loss(*_wide(out1, out2))
        one, two = _wide(out1, out2)
        each = (one - two).square().mean(-1)
    elif distance == "sym-kl":
        log_p, log_q = (out.log_softmax(-1) for out in _wide(out1, out2))
        each = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
        if mask is None:
            return each.mean()
    else:
        raise ValueError(f"distance must be 'logits-l2' or 'sym-kl'; received {distance!r}")
    return (each * mask).sum() / mask.sum().clamp(min=1)


def _wide(out1: Tensor, out2: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of half precision in float32: a difference is accumulated there."""
    return (out1, out2) if out1.dtype == torch.float64 else (out1.float(), out2.float())


def fraternal_loss(
    out1: Tensor, out2: Tensor, loss1: Tensor, loss2: Tensor, kappa: float, mask: Tensor | None = None, *,
    distance: Distance = "logits-l2",
) -> Tensor:  # fmt: skip
    """Return l_FD, section 2: the mean of the twins' losses plus kappa times their distance.

    Args:
        out1, out2: (…, m) logits under two masks.
        loss1, loss2: Their losses, already averaged.
        kappa: Factor of the distance, >= 0; with 0 the distance is not computed.
        mask: (…), True where a prediction counts.
        distance: See `twin_penalty`.
    """
    loss = 0.5 * (loss1 + loss2)
    return loss + kappa * twin_penalty(out1, out2, distance=distance, mask=mask) if kappa else loss


class FraternalTwins(nn.Module):
    """Runs a network twice on the same input; in training mode the masks differ, in evaluation mode nothing does."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        """Return what the model returns, twice."""
        return self.model(*inputs, **options), self.model(*inputs, **options)
