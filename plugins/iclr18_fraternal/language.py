"""The losses of a language model with two masks, of one piece of text."""

# T steps · B sequences · V words

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iclr18_fraternal.algorithm import Distance, fraternal_loss, twin_penalty
from iclr18_fraternal.config import Method
from iclr18cli.text.dropout import Masks
from iclr18cli.text.recurrent import RecurrentLM, activation_penalty, temporal_penalty

State = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class TwinLoss:
    """l_FD of a piece of text, or one of its relatives; a `Loss` of `iclr18cli.text.training`.

    fd: both passes have masks and targets. eld: the second has no masks and no target (Ma et al. 2016). pm: new masks,
    no target (Pi-model, Laine and Aila 2016). none: one pass. Gradients flow through both passes in all of them, and
    the state of the first one is carried on.

    Attributes:
        method, kappa, distance: Of the penalty.
        doubled: Both passes as one of a batch beside itself: masks of words and of matrices are then shared.
        same: Groups of masks that both passes share.
        alpha, beta: Of AR and TAR, on the first pass.
    """

    method: Method = "fd"
    kappa: float = 0.15
    distance: Distance = "logits-l2"
    doubled: bool = False
    same: tuple[str, ...] = ()
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(
        self, net: Any, x_TB: Tensor, y_TB: Tensor, state: State | None
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Return (loss, state, what is logged)."""
        lm: RecurrentLM = net
        masks = lm.draw(*x_TB.shape)
        if self.doubled and self.method in ("fd", "pm"):
            second = lm.draw(*x_TB.shape).sharing(masks, self.same)
            start = None if state is None else [torch.cat((part, part), 1) for part in state]
            raw, dropped, after = lm.features(torch.cat((x_TB, x_TB), 1), start, masks.beside(second))
            out1, out2 = lm.decoder(dropped).chunk(2, 1)
            B = x_TB.shape[1]
            raw, dropped, after = raw[:, :B], dropped[:, :B], [part[:, :B] for part in after]
        else:
            raw, dropped, after = lm.features(x_TB, state, masks)
            out1, out2 = lm.decoder(dropped), None
            if self.method != "none":
                second = Masks() if self.method == "eld" else lm.draw(*x_TB.shape).sharing(masks, self.same)
                out2, _ = lm(x_TB, state, second)
        loss, logged = self.combined(out1, out2, y_TB)
        if self.alpha:
            loss = loss + self.alpha * activation_penalty(dropped)
        if self.beta:
            loss = loss + self.beta * temporal_penalty(raw)
        return loss, after, logged

    def combined(self, out1: Tensor, out2: Tensor | None, y_TB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss, its parts) of the logits (T, B, V) of one or two passes."""
        first = cross_entropy(out1, y_TB)
        if out2 is None:
            return first, {"cross_entropy": first.detach()}
        penalty = twin_penalty(out1, out2, distance=self.distance)
        logged = {"cross_entropy": first.detach(), "twins": penalty.detach()}
        if self.method != "fd":
            return first + self.kappa * penalty, logged
        return fraternal_loss(out1, out2, first, cross_entropy(out2, y_TB), 0.0) + self.kappa * penalty, logged


def cross_entropy(logits_TBV: Tensor, y_TB: Tensor) -> Tensor:
    """Return the mean loss of the next tokens."""
    return F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten())
