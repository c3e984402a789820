"""What attacks raise: one number per example, larger where the prediction is closer to wrong.

S examples · K classes
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iclr18cli.attack.threat import Loss
from iclr18cli.errors import UserError


def objective(logits_SK: Tensor, y_S: Tensor, *, loss: Loss, targets_S: Tensor | None = None) -> Tensor:
    """Return what the attack raises, one number per example.

    Untargeted: cross-entropy of the true class; the margin max_{j != y} z_j - z_y, positive where the prediction is
    wrong; or "dlr", the margin over z_(1) - z_(3), with z_(1) >= z_(2) >= ... the sorted logits (Croce and Hein 2020,
    Eq. (5)). Targeted, with t the class to reach: minus the cross-entropy of t; z_t - max_{j != t} z_j; or
    (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) (ibid., Eq. (7)).

    Args:
        logits_SK: (S, K) class scores.
        y_S: (S,) true classes.
        loss: "cross-entropy" (nats), "margin" (logits) or "dlr" (no unit, 3 classes; targeted 4).
        targets_S: (S,) classes to reach; None: leave y.

    Returns:
        (S,) values.

    Raises:
        UserError: "dlr" with too few classes.

    Example:
        >>> objective(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), loss="margin").tolist()
        [-1.0]
        >>> objective(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), loss="dlr").tolist()
        [-0.5]
    """
    if loss == "cross-entropy":
        if targets_S is not None:
            return -F.cross_entropy(logits_SK, targets_S, reduction="none")
        return F.cross_entropy(logits_SK, y_S, reduction="none")
    if loss == "margin":
        value_S = margin(logits_SK, y_S if targets_S is None else targets_S)
        return value_S if targets_S is None else -value_S
    needed = 3 if targets_S is None else 4
    if logits_SK.shape[1] < needed:
        raise UserError(
            f"The DLR loss needs {needed} classes; the model has {logits_SK.shape[1]}.",
            why="its denominator is the spread between the largest logits",
            fix="--loss margin",
        )
    top_SK = logits_SK.topk(needed, dim=1).values
    if targets_S is None:
        return margin(logits_SK, y_S) / (top_SK[:, 0] - top_SK[:, 2] + 1e-12)
    gap_S = _of(logits_SK, targets_S) - _of(logits_SK, y_S)
    return gap_S / (top_SK[:, 0] - (top_SK[:, 2] + top_SK[:, 3]) / 2 + 1e-12)


@dataclass(frozen=True)
class Goal:
    """Say what an attack is after at each of its examples: the value it raises, and when it has won.

    Args:
        loss: What is raised, see `objective`.
        y: (S,) true classes.
        targets: (S,) classes to climb towards; None: away from y.
        exact: With targets: an example is broken where the target is predicted. False: where any wrong class is; the
            target only leads the way.
    """

    loss: Loss
    y: Tensor
    targets: Tensor | None = None
    exact: bool = True

    def value(self, logits_SK: Tensor) -> Tensor:
        """Return what the attack raises, (S,)."""
        return objective(logits_SK, self.y, loss=self.loss, targets_S=self.targets)

    def broken(self, logits_SK: Tensor) -> Tensor:
        """Return where the attack has won, (S,) bool."""
        predicted_S = logits_SK.argmax(1)
        return predicted_S == self.targets if self.targets is not None and self.exact else predicted_S != self.y

    def at(self, index_S: Tensor) -> Goal:
        """Return the goal at some of the examples."""
        targets_S = None if self.targets is None else self.targets[index_S]
        return replace(self, y=self.y[index_S], targets=targets_S)


def margin(logits_SK: Tensor, aim_S: Tensor) -> Tensor:
    """Return max_{j != aim} z_j - z_aim, (S,)."""
    return logits_SK.scatter(1, aim_S[:, None], -torch.inf).amax(1) - _of(logits_SK, aim_S)


def _of(logits_SK: Tensor, index_S: Tensor) -> Tensor:
    return logits_SK.gather(1, index_S[:, None]).squeeze(1)
