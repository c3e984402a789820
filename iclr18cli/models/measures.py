"""What a classifier does on a split, unattacked. Several ranks share the points and all get the result.

B batch · K classes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli import launch
from iclr18cli.data.tensors import Split, batches
from iclr18cli.models.modes import evaluating

BATCH = 500


def classified(net: nn.Module, split: Split, *, batch_size: int = BATCH) -> dict[str, float]:
    """Return n, accuracy in [0, 1] and the mean cross-entropy in nats, in evaluation mode.

    Args:
        net: Maps (B, *shape) to (B, K) logits.
        split: On the network's device.
        batch_size: Examples per pass.
    """
    ranks, n = launch.world(), len(split)
    sums_2 = torch.zeros(2, dtype=torch.float64, device=split.x.device)
    part = ranks.part(n)
    with evaluating(net), torch.no_grad():
        if part.start < part.stop:
            own = split if ranks.size == 1 else split.take(torch.arange(part.start, part.stop))
            for x, y in batches(own, batch_size):
                logits_BK = net(x).float()
                sums_2[0] += (logits_BK.argmax(1) == y).sum()
                sums_2[1] += F.cross_entropy(logits_BK, y, reduction="sum")
    correct, loss = ranks.total(sums_2).tolist()
    return {"n": n, "accuracy": correct / n, "loss": loss / n}


def accuracy(net: nn.Module, split: Split, *, batch_size: int = BATCH) -> float:
    """Return the share of points that are classified correctly, see `classified`."""
    return classified(net, split, batch_size=batch_size)["accuracy"]
