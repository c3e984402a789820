"""NT-ASGD: SGD that begins to average its weights when validation stops getting better (Merity et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NonMonotoneAveraging:
    """The average of a module's iterates since a trigger, Algorithm 1 of Merity, Keskar, Socher (2017).

    The rule of `torch.optim.ASGD` with t0 = 0 and lambd = 0: after step s the average is the mean of iterates 2 .. s,
    the first one counts only until the second is there. The iterates are those of any optimiser.

    Args:
        module: Trained elsewhere.
        nonmono: n: it is triggered once a validation value is worse than the best of all but the last n before it.
            0 or less: from the start, as in fine-tuning.
    """

    def __init__(self, module: nn.Module, nonmono: int):
        self.parameters, self.nonmono = list(module.parameters()), nonmono
        self.steps = 0
        self.history: list[float] = []
        self.averages: list[Tensor] = []
        if nonmono <= 0:
            self.begin()

    @property
    def active(self) -> bool:
        """Averaging has begun."""
        return bool(self.averages)

    def begin(self) -> None:
        """Start to average, from the next step."""
        self.steps, self.averages = 0, [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after an update."""
        if self.active:
            self.steps += 1
            weight = 1 / max(1, self.steps - 1)
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], weight)

    def validated(self, value: float) -> bool:
        """Note the value of an epoch; True: averaging begins now."""
        n = self.nonmono
        begins = not self.active and len(self.history) > n and value > min(self.history[:-n])
        self.history.append(value)
        if begins:
            self.begin()
        return begins

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the module the averaged weights inside the block; nothing happens before the first averaged step."""
        if not self.active or not self.steps:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the averaged weights in the module for good."""
        if self.active and self.steps:
            torch._foreach_copy_([p.detach() for p in self.parameters], self.averages)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"steps": self.steps, "history": list(self.history), "averages": list(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps, self.history = state["steps"], list(state["history"])
        self.averages = [a.to(p.device) for a, p in zip(state["averages"], self.parameters, strict=False)]
