"""The examples that an attack still works on, and the passes through the model that attacks share.

B batch · S survivors, the examples not broken yet · X the axes of one input · K classes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import Goal
from iclr18cli.attack.threat import per_example
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating


class Survivors:
    """The examples an attack still works on, and the best point of every example it was given.

    Tensors ending in S have a row for each example in the batch; `thin` takes out those that are broken.

    Attributes:
        x_SX: The inputs themselves.
        goal: What is raised at them.
        best_SX, value_S: The best point so far and its value; a broken example keeps the point that broke it.
        broken_S: bool.
    """

    def __init__(self, x_BX: Tensor, goal: Goal):
        self.x_SX = self.best_SX = x_BX.detach().clone()
        self.value_S = torch.full((len(x_BX),), -torch.inf, dtype=x_BX.dtype, device=x_BX.device)
        self.broken_S = torch.zeros(len(x_BX), dtype=torch.bool, device=x_BX.device)
        self._index_S = torch.arange(len(x_BX), device=x_BX.device)
        self.goal = goal.at(self._index_S)  # copies: a label made in inference mode cannot be part of a graph
        self._all = (self.best_SX.clone(), self.value_S.clone(), self.broken_S.clone())

    def __len__(self) -> int:
        return len(self._index_S)

    def note(self, z_SX: Tensor, value_S: Tensor, broken_S: Tensor) -> Tensor:
        """Keep the points that are better than the best so far, and return where they were."""
        better_S = ~self.broken_S & (broken_S | (value_S > self.value_S))
        self.best_SX = torch.where(per_example(better_S, z_SX), z_SX, self.best_SX)
        self.value_S = torch.where(better_S, value_S.to(self.value_S.dtype), self.value_S)
        self.broken_S = self.broken_S | broken_S
        return better_S

    def thin(self, step: int = 0) -> Tensor | None:
        """Let broken examples leave the batch; return the rows that stay, None if all do.

        Every eighth step, from 0, all of them leave. In between they leave in groups of a sixteenth of the batch, as
        copying what stays costs more than a few idle rows; an accelerator, which has to be waited for, is not even
        asked then.
        """
        if step % 8 and self.x_SX.device.type != "cpu":
            return None
        broken = int(self.broken_S.sum())
        if broken == 0 or (step % 8 and broken < len(self) / 16):
            return None
        self._write_back()
        keep_S = (~self.broken_S).nonzero().flatten()
        self._index_S, self.goal = self._index_S[keep_S], self.goal.at(keep_S)
        self.x_SX, self.best_SX = self.x_SX[keep_S], self.best_SX[keep_S]
        self.value_S, self.broken_S = self.value_S[keep_S], self.broken_S[keep_S]
        return keep_S

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return best points, values and where broken, of every example given: (B, *shape), (B,), (B,)."""
        self._write_back()
        return self._all

    def points(self) -> Tensor:
        """Return the best point of every example given, (B, *shape)."""
        return self.all()[0]

    def _write_back(self) -> None:
        for whole_B, part_S in zip(self._all, (self.best_SX, self.value_S, self.broken_S), strict=True):
            whole_B.index_copy_(0, self._index_S, part_S)


@contextmanager
def climbing(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode without parameter gradients, and record gradients whatever the caller does."""
    # inference_mode(False): under the caller's inference mode enable_grad alone would record nothing.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        yield


def judge(model: nn.Module, z_SX: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Return the value at some points and where they are broken, from one forward pass."""
    with torch.no_grad():
        logits_SK = model(z_SX)
        return goal.value(logits_SK), goal.broken(logits_SK)


def look(model: nn.Module, z_SX: Tensor, goal: Goal) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value at some points, where they are broken, and the gradient there; one pass each way.

    Raises:
        UserError: The model has no gradient.
    """
    z_SX = z_SX.detach().requires_grad_()
    logits_SK = model(z_SX)
    value_S = goal.value(logits_SK)
    if not value_S.requires_grad:
        raise UserError(
            "This attack needs gradients, and the model's output has none with respect to its input.",
            why="a step of the model rounds, detaches or leaves torch",
            fix="--attack square or noise, or a straight-through gradient in the model",
        )
    (gradient_SX,) = torch.autograd.grad(value_S.sum(), z_SX, materialize_grads=True)
    return value_S.detach(), goal.broken(logits_SK.detach()), gradient_SX
