"""Front end without DDP: an optimiser wrapper that exchanges the gradients it finds, then lets the optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from iclr18_dgc.exchange import together
from iclr18_dgc.guard import check_optimizer, guard
from iclr18_dgc.slab import Slab
from iclr18_dgc.state import DGCState


class DGCOptimizer:
    """Wraps a plain SGD: `step()` takes the gradients of this worker's own loss and makes the same step on all ranks.

    The same rule on one worker as on many. Every rank must call `step()`, and all must have begun with the same
    parameters. Learning rate schedulers take the wrapped optimiser, `.optimizer`.

    Args:
        optimizer: SGD(lr) without momentum and weight decay, which are the state's; it may hold other parameters, too.
        state: Of the model whose parameters are exchanged.

    Raises:
        UserError: The optimiser has momentum or weight decay, see `check_optimizer`.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> state = DGCState(model, schedule=0.25, momentum=0.9)
        >>> optimizer = DGCOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), state)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> int((model.weight.grad != 0).sum())
        2
    """

    def __init__(self, optimizer: Optimizer, state: DGCState):
        check_optimizer(optimizer, state)
        self.optimizer, self.state = optimizer, state
        self._flats: WeakKeyDictionary[Slab, Tensor] = WeakKeyDictionary()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the wrapped optimiser."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Exchange, then step; with a closure, evaluate it first and return what it returned."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        self.exchange()
        self.optimizer.step()
        return value

    @torch.no_grad()
    def exchange(self) -> bool:
        """Put the update of the whole group in the place of this worker's gradients; return whether it is one.

        A parameter without gradient counts as one with gradient zero, so that all ranks send as much. If a gradient
        of any rank is not finite the update is zero, and momentum and residual stay as they are, on every rank.
        """
        state = self.state
        state.check_place()
        guard(state)
        slabs = state.homes
        flats = [self._gather(slab) for slab in slabs]
        taken = together(state, slabs, flats)
        for slab, flat in zip(slabs, flats, strict=True):
            for name, parameter in slab.parameters.items():
                parameter.grad = slab.shaped(flat, name)
        return taken

    def flush(self) -> None:
        """Step once with all that the workers still hold back, see `DGCState.flush`."""
        self.state.flush()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimiser and of DGC; the latter is each rank's own."""
        return {"optimizer": self.optimizer.state_dict(), "dgc": self.state.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state this rank saved, see `DGCState.load_state_dict`."""
        self.state.load_state_dict(state["dgc"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _gather(self, slab: Slab) -> Tensor:
        """Return the gradients of a slab laid end to end, in memory that is used again."""
        flat = self._flats.get(slab)
        if flat is None:
            first = next(iter(slab.parameters.values()))
            flat = self._flats[slab] = torch.empty(slab.n, dtype=first.dtype, device=first.device)
        for name, parameter in slab.parameters.items():
            part = flat[slab.places[name]]
            if parameter.grad is None:
                part.zero_()
            elif parameter.grad.data_ptr() != part.data_ptr():
                part.copy_(parameter.grad.reshape(-1))
        return flat
