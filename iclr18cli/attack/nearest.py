"""What a minimal-norm attack keeps: for each example the nearest misclassified point seen, drawn closer at the end.

B batch · S some of its examples · X the axes of one input · K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import margin
from iclr18cli.attack.threat import Threat, per_example

CLOSER = 8
"""Forward passes of the final search along the segment from x to the point found."""


def clear_gap(logits_SK: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gap, broken): max_{j != y} f_j - f_y, and whether it is positive beyond the rounding of the logits.

    A point that sits on the boundary to the last bit is right in one batch and wrong in another: sums are ordered by
    the batch's shape. So a wrong class must lead by 16 units in the last place of the largest logit.
    """
    gap_S = margin(logits_SK, y_S)
    return gap_S, gap_S > 16 * torch.finfo(logits_SK.dtype).eps * logits_SK.abs().amax(1)


class Nearest:
    """The nearest misclassified point of each example so far; x itself where none was seen.

    Args:
        model: Maps (B, *shape) to (B, K) logits, in evaluation mode.
        x_BX: (B, ...) inputs.
        y_B: (B,) true classes.
        threat: Its norm measures, its domain is kept.

    Attributes:
        point_BX: (B, ...) the points.
        distance_B: (B,) how far they are; infinite where none was seen.
    """

    def __init__(self, model: nn.Module, x_BX: Tensor, y_B: Tensor, threat: Threat):
        self.model, self.x_BX, self.y_B, self.threat = model, x_BX, y_B, threat
        self.point_BX = x_BX.clone()
        self.distance_B = torch.full_like(threat.distance(x_BX, x_BX), torch.inf)

    def right(self) -> tuple[Tensor, Tensor]:
        """Return (indices, logits) of the examples that the model gets right: those worth attacking."""
        if len(self.x_BX) == 0:
            return torch.arange(0, device=self.x_BX.device), self.x_BX.new_zeros(0, 2)
        with torch.no_grad():
            logits_BK = self.model(self.x_BX)
        index_S = (logits_BK.argmax(1) == self.y_B).nonzero().flatten()
        return index_S, logits_BK[index_S]

    def offer(self, index_S: Tensor, z_SX: Tensor, broken_S: Tensor) -> None:
        """Keep z of the examples `index` where it is misclassified and nearer than what is kept."""
        z_SX = z_SX.detach()
        distance_S = self.threat.distance(z_SX, self.x_BX[index_S])
        better_S = broken_S & (distance_S < self.distance_B[index_S])
        self.point_BX[index_S] = torch.where(per_example(better_S, z_SX), z_SX, self.point_BX[index_S])
        self.distance_B[index_S] = torch.where(better_S, distance_S, self.distance_B[index_S])

    def draw_closer(self, passes: int = CLOSER) -> Tensor:
        """Search the segment from x to each point found for where it turns wrong, and return all points.

        The final search of Croce and Hein (2020), §3.3: between a right and a wrong point the gap is nearly linear, so
        the zero of the line through the two values is tried, in turn with the middle, which halves the bracket
        whatever the shape.

        Args:
            passes: Forward passes.
        """
        found_S = self.distance_B.isfinite().nonzero().flatten()
        if len(found_S) == 0:
            return self.point_BX
        x_SX, y_S, z_SX = self.x_BX[found_S], self.y_B[found_S], self.point_BX[found_S]
        with torch.no_grad():
            right_gap_S, wrong_gap_S = margin(self.model(x_SX), y_S), margin(self.model(z_SX), y_S)
            right_S, wrong_S = torch.zeros_like(right_gap_S), torch.ones_like(right_gap_S)
            for k in range(passes):
                share_S = torch.full_like(right_S, 0.5)
                if k % 2 == 0:
                    zero_S = right_gap_S / (right_gap_S - wrong_gap_S)
                    share_S = torch.where(zero_S.isfinite(), zero_S.clamp(0.02, 0.98), share_S)
                try_S = right_S + share_S * (wrong_S - right_S)
                point_SX = self.threat.clip(x_SX + per_example(try_S, x_SX).to(x_SX.dtype) * (z_SX - x_SX))
                gap_S, broken_S = clear_gap(self.model(point_SX), y_S)
                self.offer(found_S, point_SX, broken_S)
                right_S, wrong_S = torch.where(broken_S, right_S, try_S), torch.where(broken_S, try_S, wrong_S)
                right_gap_S = torch.where(broken_S, right_gap_S, gap_S)
                wrong_gap_S = torch.where(broken_S, gap_S, wrong_gap_S)
        return self.point_BX
