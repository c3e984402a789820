"""Label smoothing as in the authors' code, and the cross-entropy against it."""

# B batch · K classes

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_labels(labels: Tensor, classes: int, *, amount: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one-hot labels clipped to [amount/(K-1), 1 - amount], the authors' code; each row sums to one.

    Args:
        labels: (B,) integers in 0..K-1.
        classes: K, at least 2.
        amount: Probability moved off the label, 0 to 1 - 1/K; the code's is 0.1 (with K = 10, [0.1/9, 0.9]).

    Returns:
        (B, K) target distributions.

    Raises:
        ValueError: classes < 2 or amount outside its range.

    Example:
        >>> smooth_labels(torch.tensor([1]), 3)
        tensor([[0.0500, 0.9000, 0.0500]])
    """
    if classes < 2 or not 0 <= amount <= 1 - 1 / classes:
        raise ValueError(f"amount must be in 0..1 - 1/classes; received amount={amount!r}, classes={classes!r}")
    return F.one_hot(labels, classes).to(dtype).clamp(amount / (classes - 1), 1 - amount)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in nats per example, (B,), of (B, K) logits against (B, K) distributions."""
    return F.cross_entropy(logits, targets, reduction="none")
