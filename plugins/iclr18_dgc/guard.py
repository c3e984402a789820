"""Refuses an optimiser that would do again what DGC has already done: momentum, and weight decay without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from iclr18_dgc.state import DGCState
from iclr18cli.errors import UserError

_guarded: WeakSet[DGCState] = WeakSet()
_installed: list[Any] = []


def guard(state: DGCState) -> None:
    """Check every optimiser that is about to step on parameters of this state, from now on."""
    if state in _guarded:
        return
    _guarded.add(state)
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_before_step))


def check_optimizer(optimizer: Optimizer, state: DGCState) -> None:
    """Refuse momentum on top of momentum.

    A state with momentum 0 takes any optimiser: that is Gradient Dropping.

    Raises:
        UserError: The optimiser has momentum, or weight decay, for parameters of this state.
    """
    if state.rule.momentum == 0:
        return
    for group in optimizer.param_groups:
        momentum = group.get("momentum") or (group.get("betas") or (0.0,))[0]
        decay = group.get("weight_decay", 0.0)
        if not (momentum or decay) or not any(id(p) in state.names for p in group["params"]):
            continue
        name = type(optimizer).__name__
        if momentum:
            raise UserError(
                "Momentum would be applied twice.",
                why=f"DGC's update has momentum {state.rule.momentum:g} inside, and {name} has {float(momentum):g}",
                fix="torch.optim.SGD(model.parameters(), lr), without momentum",
            )
        raise UserError(
            "Weight decay would be too weak.",
            why=f"{name} applies it without the factor 1/(1 - {state.rule.momentum:g}) that momentum gives it",
            fix=f"DGCState(..., weight_decay={decay:g}), and none in the optimiser",
        )


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for state in _guarded:
        check_optimizer(optimizer, state)
