"""The books of one worker: all that entered v and all that was sent, in float64, to check that nothing is lost."""

# n entries of a slab

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from iclr18_dgc.slab import Slab


class Ledger:
    """Keeps sum_t u_t and sum_t sent_t of every sparsified parameter, so that v_T = sum u - sum sent can be checked.

    With nesterov u_t stands for m u_t + g_t. Costs two float64 copies of the model.
    """

    def __init__(self) -> None:
        self.entered: dict[str, Tensor] = {}
        self.left: dict[str, Tensor] = {}

    def enter(self, slab: Slab, gradient: Tensor) -> None:
        """Book what `compensate_` has just added to v; u is the new one."""
        m = slab.rule.momentum
        if m == 0:
            added = gradient
        else:
            added = torch.add(gradient, slab.u, alpha=m) if slab.rule.nesterov else slab.u
        for name in slab.compressed:
            self._of(self.entered, slab, name).add_(added[slab.places[name]])

    def leave(self, slab: Slab, index_K: Tensor, sent_K: Tensor) -> None:
        """Book what was sent."""
        sent = torch.zeros(slab.n, dtype=torch.float64, device=index_K.device)
        sent[index_K] = sent_K.double()
        for name in slab.compressed:
            self._of(self.left, slab, name).add_(sent[slab.places[name]])

    def leave_all(self, slab: Slab) -> None:
        """Book that all of v is sent."""
        for name in slab.compressed:
            self._of(self.left, slab, name).add_(slab.v[slab.places[name]])

    def imbalance(self, residual: Mapping[str, Tensor]) -> dict[str, float]:
        """Return max |v - (sum u - sum sent)| over max |sum u| for each parameter: rounding, if nothing was lost.

        Args:
            residual: Name -> v, as `DGCState.residual` gives it.
        """
        off = {}
        for name, entered in self.entered.items():
            balance = entered - self.left.get(name, torch.zeros_like(entered))
            scale = entered.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
            off[name] = ((residual[name].double().view(-1) - balance).abs().max() / scale).item()
        return off

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the books, copied."""
        return {
            "entered": {name: tensor.clone() for name, tensor in self.entered.items()},
            "left": {name: tensor.clone() for name, tensor in self.left.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on with books that `state_dict` returned."""
        self.entered = {name: tensor.clone() for name, tensor in state["entered"].items()}
        self.left = {name: tensor.clone() for name, tensor in state["left"].items()}

    @staticmethod
    def _of(book: dict[str, Tensor], slab: Slab, name: str) -> Tensor:
        if name not in book:
            book[name] = torch.zeros(slab.parameters[name].numel(), dtype=torch.float64, device=slab.u.device)
        return book[name]
